/* A TCG plugin for QEMU's user mode: instructions of 64-bit Arm code, by class.
 *
 * The guest marks a moment by getpgid(0x5eed0000 + NUMBER), which fails there; the plugin then prints one line
 * `mark NUMBER ALL VECTOR MEMORY` on standard error: instructions so far, of all threads; those of them that the
 * vector and floating-point unit computes; those that load or store.
 * QEMU's plugin interface, version 1, is declared here as far as it is used: distributions ship QEMU
 * without its header.
 */
#include <stdint.h>
#include <stdio.h>

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum { INLINE_ADD_U64 = 0 };

__attribute__((visibility("default"))) int qemu_plugin_version = 1;
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id,
                                           void (*callback)(qemu_plugin_id_t,
                                                            struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *block, int operation,
                                              void *counter, uint64_t amount);
void qemu_plugin_register_vcpu_syscall_cb(
    qemu_plugin_id_t id,
    void (*callback)(qemu_plugin_id_t, unsigned, int64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                     uint64_t, uint64_t, uint64_t, uint64_t));
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *block);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *block, size_t index);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *instruction);
int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc, char **argv);

enum { ALL, VECTOR, MEMORY, CLASSES };
static uint64_t executed[CLASSES];

/* By the main groups of the A64 encoding, bits 28 to 25 (Arm Architecture Reference Manual, C4.1). */
static int class_of(uint32_t word) {
  const unsigned group = word >> 25 & 15;
  return (group & 7) == 7 ? VECTOR : (group & 5) == 4 ? MEMORY : ALL;
}

static void on_translation(qemu_plugin_id_t id, struct qemu_plugin_tb *block) {
  uint64_t found[CLASSES] = {0};
  (void)id;
  for (size_t i = 0; i < qemu_plugin_tb_n_insns(block); i++) {
    const uint8_t *at = qemu_plugin_insn_data(qemu_plugin_tb_get_insn(block, i));
    const int its = class_of((uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24);
    found[ALL]++;
    if (its != ALL) found[its]++;
  }
  for (int i = 0; i < CLASSES; i++)
    if (found[i]) qemu_plugin_register_vcpu_tb_exec_inline(block, INLINE_ADD_U64, &executed[i], found[i]);
}

static void on_system_call(qemu_plugin_id_t id, unsigned cpu, int64_t number, uint64_t a, uint64_t b,
                           uint64_t c, uint64_t d, uint64_t e, uint64_t f, uint64_t g, uint64_t h) {
  (void)id, (void)cpu, (void)b, (void)c, (void)d, (void)e, (void)f, (void)g, (void)h;
  if (number != 155 || (a & 0xffff0000u) != 0x5eed0000u) return; /* getpgid */
  fprintf(stderr, "mark %u %llu %llu %llu\n", (unsigned)(a & 0xffff),
          (unsigned long long)executed[ALL], (unsigned long long)executed[VECTOR],
          (unsigned long long)executed[MEMORY]);
}

__attribute__((visibility("default"))) int qemu_plugin_install(qemu_plugin_id_t id,
                                                               const void *info, int argc,
                                                               char **argv) {
  (void)info, (void)argc, (void)argv;
  qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
  qemu_plugin_register_vcpu_syscall_cb(id, on_system_call);
  return 0;
}
