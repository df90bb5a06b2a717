/* Counts what a process asks of the file system below one folder, and lets one request fail.
 *
 * Loaded with LD_PRELOAD. fault_arm names the folder and the request; until then, and outside of the
 * folder, everything passes. Requests are those that change what is on the disk: a file opened to be
 * written, write, fsync, rename, link, unlink, mkdir, rmdir, truncate.
 *   mode 1: the process is killed before the request; of a write, half is written first
 *   mode 2: this request and all later writes find no space (ENOSPC)
 *   mode 3: this request alone fails (EIO)
 *   mode 4: as mode 2, where a quota is used up (EDQUOT)
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <semaphore.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { KILL = 1, FULL = 2, BROKEN = 3, QUOTA = 4 };

static char folder[4096];
static size_t folder_length;
static int mode;
static long at;
static atomic_long seen;

long fault_seen(void) { return atomic_load(&seen); }

void fault_arm(const char *path, int how, long number) {
    snprintf(folder, sizeof folder, "%s", path);
    folder_length = strlen(folder);
    mode = how;
    at = number;
    atomic_store(&seen, 0);
}

static int below(const char *path) {
    return folder_length && path && strncmp(path, folder, folder_length) == 0 &&
           (path[folder_length] == '/' || path[folder_length] == 0);
}

static int path_counts(int base, const char *path) {
    char whole[8192], name[64];
    if (!folder_length || !path) return 0;
    if (path[0] == '/') return below(path);
    if (base == AT_FDCWD) return getcwd(whole, 4096) && below(strcat(strcat(whole, "/"), path));
    snprintf(name, sizeof name, "/proc/self/fd/%d", base);
    ssize_t length = readlink(name, whole, 4096);
    if (length < 0) return 0;
    whole[length] = 0;
    return below(whole);
}

static int file_counts(int fd) {
    return fd > 2 && path_counts(fd, "");
}

/* Returns the error to fail with, or 0: let it pass. */
static int fault(int counts, int is_write) {
    if (!counts) return 0;
    long number = atomic_fetch_add(&seen, 1) + 1;
    if (!at || !(number == at || (number > at && is_write && (mode == FULL || mode == QUOTA)))) return 0;
    switch (mode) {
    case KILL: return -1;
    case FULL: return ENOSPC;
    case QUOTA: return EDQUOT;
    case BROKEN: return EIO;
    default: return 0;
    }
}

static void die(void) {
    raise(SIGKILL);
    for (;;) pause();
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define REQUEST(counts, is_write)          \
    do {                                   \
        int error = fault(counts, is_write); \
        if (error < 0) die();              \
        if (error) { errno = error; return -1; } \
    } while (0)

ssize_t write(int fd, const void *data, size_t size) {
    static ssize_t (*real)(int, const void *, size_t);
    if (!real) real = REAL(write);
    int error = folder_length ? fault(file_counts(fd), 1) : 0;
    if (error < 0) {
        (void)!real(fd, data, size / 2);
        die();
    }
    if (error) { errno = error; return -1; }
    return real(fd, data, size);
}

int fsync(int fd) {
    REQUEST(file_counts(fd), 0);
    return REAL(fsync)(fd);
}

int ftruncate64(int fd, off64_t length) {
    REQUEST(file_counts(fd), 0);
    return REAL(ftruncate64)(fd, length);
}

int ftruncate(int fd, off_t length) {
    REQUEST(file_counts(fd), 0);
    return REAL(ftruncate)(fd, length);
}

static int opened(int base, const char *path, int flags) {
    return (flags & (O_CREAT | O_TRUNC | O_WRONLY | O_RDWR)) && path_counts(base, path);
}

#define OPEN(name)                                       \
    int name(const char *path, int flags, ...) {         \
        va_list rest;                                    \
        va_start(rest, flags);                           \
        mode_t rights = va_arg(rest, mode_t);            \
        va_end(rest);                                    \
        REQUEST(opened(AT_FDCWD, path, flags), 1);       \
        return REAL(name)(path, flags, rights);          \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                          \
    int name(int base, const char *path, int flags, ...) {    \
        va_list rest;                                         \
        va_start(rest, flags);                                \
        mode_t rights = va_arg(rest, mode_t);                 \
        va_end(rest);                                         \
        REQUEST(opened(base, path, flags), 1);                \
        return REAL(name)(base, path, flags, rights);         \
    }
OPENAT(openat)
OPENAT(openat64)

/* The C library's own opens of shared memory pass by those above. */
int shm_open(const char *name, int flags, mode_t rights) {
    REQUEST(below("/dev/shm"), 1);
    return REAL(shm_open)(name, flags, rights);
}

sem_t *sem_open(const char *name, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    mode_t rights = va_arg(rest, mode_t);
    unsigned value = va_arg(rest, unsigned);
    va_end(rest);
    int error = fault(below("/dev/shm"), 1);
    if (error < 0) die();
    if (error) { errno = error; return SEM_FAILED; }
    return REAL(sem_open)(name, flags, rights, value);
}

int rename(const char *from, const char *to) {
    REQUEST(path_counts(AT_FDCWD, to), 0);
    return REAL(rename)(from, to);
}

int renameat(int from_base, const char *from, int to_base, const char *to) {
    REQUEST(path_counts(to_base, to), 0);
    return REAL(renameat)(from_base, from, to_base, to);
}

int link(const char *from, const char *to) {
    REQUEST(path_counts(AT_FDCWD, to), 1);
    return REAL(link)(from, to);
}

int linkat(int from_base, const char *from, int to_base, const char *to, int flags) {
    REQUEST(path_counts(to_base, to), 1);
    return REAL(linkat)(from_base, from, to_base, to, flags);
}

int symlink(const char *from, const char *to) {
    REQUEST(path_counts(AT_FDCWD, to), 1);
    return REAL(symlink)(from, to);
}

int unlink(const char *path) {
    REQUEST(path_counts(AT_FDCWD, path), 0);
    return REAL(unlink)(path);
}

int unlinkat(int base, const char *path, int flags) {
    REQUEST(path_counts(base, path), 0);
    return REAL(unlinkat)(base, path, flags);
}

int mkdir(const char *path, mode_t rights) {
    REQUEST(path_counts(AT_FDCWD, path), 1);
    return REAL(mkdir)(path, rights);
}

int rmdir(const char *path) {
    REQUEST(path_counts(AT_FDCWD, path), 0);
    return REAL(rmdir)(path);
}
