/* A TCG plugin for QEMU: the instructions between trace_mark_begin and trace_mark_end, by class.
 *
 * QEMU's plugin interface, version 1, is declared here as far as it is used: distributions ship QEMU
 * without its header. Prints one line for each pair of marks, in order, on standard error: `count`,
 * and the numbers of the counters below. Of Arm's Thumb instructions alone are classes known.
 * Arguments: begin=ADDRESS,end=ADDRESS of the two functions.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum { QEMU_PLUGIN_INLINE_ADD_U64 = 0, QEMU_PLUGIN_CB_NO_REGS = 0 };

__attribute__((visibility("default"))) int qemu_plugin_version = 1;
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id,
                                           void (*callback)(qemu_plugin_id_t,
                                                            struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *block,
                                          void (*callback)(unsigned, void *), int flags,
                                          void *data);
void qemu_plugin_register_vcpu_insn_exec_inline(struct qemu_plugin_insn *instruction, int operation,
                                                void *counter, uint64_t amount);
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *instruction,
                                            void (*callback)(unsigned, void *), int flags,
                                            void *data);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *block);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *block, size_t index);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *block);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *instruction);
size_t qemu_plugin_insn_size(const struct qemu_plugin_insn *instruction);
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *instruction);
int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc, char **argv);

/* WORDS are those that loads and stores of several registers move beyond their first one. */
enum { ALL, LOAD, STORE, WORDS, MULTIPLY, ACCUMULATE, LONG, DIVIDE, TAKEN, COUNTERS };
static uint64_t counters[COUNTERS], at_begin[COUNTERS], begin_address, end_address, next_address;

typedef struct {
  uint64_t begin, end;
} range;

static void on_begin(unsigned cpu, void *data) {
  (void)cpu, (void)data;
  memcpy(at_begin, counters, sizeof counters);
}

static void on_end(unsigned cpu, void *data) {
  (void)cpu, (void)data;
  fprintf(stderr, "count");
  for (int i = 0; i < COUNTERS; i++)
    fprintf(stderr, " %llu", (unsigned long long)(counters[i] - at_begin[i]));
  fprintf(stderr, "\n");
}

/* Blocks of code end at branches: one was taken where the next block is not what follows. */
static void on_block(unsigned cpu, void *data) {
  const range *block = data;
  (void)cpu;
  if (block->begin != next_address) counters[TAKEN]++;
  next_address = block->end;
}

/* The class of a Thumb instruction of one or two halfwords, and how many registers it moves. */
static int class_of(unsigned one, unsigned two, unsigned *registers) {
  *registers = 1;
  if (one >> 11 < 0x1d) {
    if (one >> 11 == 0x09) return LOAD;                                  /* literal */
    if (one >> 12 == 0x5) return (one >> 9 & 7) < 3 ? STORE : LOAD;      /* register offset */
    if (one >> 12 >= 0x6 && one >> 12 <= 0x9) return one >> 11 & 1 ? LOAD : STORE;
    if ((one & 0xf600) == 0xb400) { /* push, pop */
      *registers = (unsigned)__builtin_popcount(one & 0x1ff);
      return one >> 11 & 1 ? LOAD : STORE;
    }
    if (one >> 12 == 0xc) {
      *registers = (unsigned)__builtin_popcount(one & 0xff);
      return one >> 11 & 1 ? LOAD : STORE;
    }
    return (one & 0xffc0) == 0x4340 ? MULTIPLY : ALL;
  }
  const int moves = one >> 4 & 1 ? LOAD : STORE;
  if ((one & 0xfe40) == 0xe800) { /* several registers */
    *registers = (unsigned)__builtin_popcount(two);
    return moves;
  }
  if ((one & 0xfe40) == 0xe840) { /* two registers; exclusive ones, table branches */
    *registers = one & 0x120 ? 2 : 1;
    return moves;
  }
  if ((one & 0xfe00) == 0xf800) return moves;
  if ((one & 0xfe00) == 0xec00 && (two & 0xe00) == 0xa00 && (one & 0x1a0)) { /* floating-point */
    const unsigned words = two & 0xff;
    *registers = (one & 0x120) == 0x100 ? (two & 0x100 ? 2 : 1) : words;
    return moves;
  }
  if ((one & 0xff80) == 0xfb00) return two >> 12 == 0xf ? MULTIPLY : ACCUMULATE;
  if ((one & 0xff80) == 0xfb80) return (one & 0x50) == 0x10 ? DIVIDE : LONG;
  return ALL;
}

static int is_thumb;

static void on_translation(qemu_plugin_id_t id, struct qemu_plugin_tb *block) {
  const size_t count = qemu_plugin_tb_n_insns(block);
  range *place = malloc(sizeof *place); /* for as long as the emulator runs */
  (void)id;
  place->begin = place->end = qemu_plugin_tb_vaddr(block);
  for (size_t i = 0; i < count; i++) {
    struct qemu_plugin_insn *instruction = qemu_plugin_tb_get_insn(block, i);
    const uint64_t address = qemu_plugin_insn_vaddr(instruction);
    place->end = address + qemu_plugin_insn_size(instruction);
    if (address == begin_address)
      qemu_plugin_register_vcpu_insn_exec_cb(instruction, on_begin, QEMU_PLUGIN_CB_NO_REGS, NULL);
    if (address == end_address)
      qemu_plugin_register_vcpu_insn_exec_cb(instruction, on_end, QEMU_PLUGIN_CB_NO_REGS, NULL);
    qemu_plugin_register_vcpu_insn_exec_inline(instruction, QEMU_PLUGIN_INLINE_ADD_U64, counters, 1);
    if (!is_thumb) continue;
    uint16_t code[2] = {0, 0};
    memcpy(code, qemu_plugin_insn_data(instruction), qemu_plugin_insn_size(instruction) & 6);
    unsigned registers;
    const int class = class_of(code[0], code[1], &registers);
    if (class != ALL)
      qemu_plugin_register_vcpu_insn_exec_inline(instruction, QEMU_PLUGIN_INLINE_ADD_U64,
                                                 counters + class, 1);
    if (registers > 1)
      qemu_plugin_register_vcpu_insn_exec_inline(instruction, QEMU_PLUGIN_INLINE_ADD_U64,
                                                 counters + WORDS, registers - 1);
  }
  if (is_thumb)
    qemu_plugin_register_vcpu_tb_exec_cb(block, on_block, QEMU_PLUGIN_CB_NO_REGS, place);
}

__attribute__((visibility("default"))) int qemu_plugin_install(qemu_plugin_id_t id,
                                                               const void *info, int argc,
                                                               char **argv) {
  is_thumb = !strcmp(*(const char *const *)info, "arm"); /* the first field is the target's name */
  for (int i = 0; i < argc; i++) {
    if (!strncmp(argv[i], "begin=", 6)) begin_address = strtoull(argv[i] + 6, NULL, 0) & ~1ull;
    if (!strncmp(argv[i], "end=", 4)) end_address = strtoull(argv[i] + 4, NULL, 0) & ~1ull;
  }
  qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
  return 0;
}
