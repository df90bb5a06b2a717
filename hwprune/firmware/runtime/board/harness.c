/* Runs a network on an emulated board for every input of a file, over semihosting.
 *
 * Reads `input.bin`: inputs one after the other, each in rows: [row][channel][x]. For each writes to
 * `result.bin`: the status of the run, the sum of each tensor, the bytes of stack that were used
 * (little-endian words of 32 bits), and the outputs' bytes.
 */
#include "model.h"
#include "trace.h"

extern uint8_t stack_begin, stack_end;
void finish(int status);

enum { OPEN = 1, CLOSE = 2, WRITE = 5, READ = 6, EXIT_EXTENDED = 0x20 };
enum { OPEN_READ_BINARY = 1, OPEN_WRITE_BINARY = 5 };
enum { APPLICATION_EXIT = 0x20026 };
enum { PAINT = 0xA5 };

/* Small and aligned: a call of RISC-V is three instructions that have to lie in one page. */
__attribute__((noinline, aligned(64))) static int semihost(int operation, const void *argument) {
#if defined(__riscv)
  register int a0 __asm__("a0") = operation;
  register const void *a1 __asm__("a1") = argument;
  __asm__ volatile(
      ".option push\n.option norvc\nslli x0, x0, 0x1f\nebreak\nsrai x0, x0, 7\n.option pop"
      : "+r"(a0) : "r"(a1) : "memory");
  return a0;
#else
  register int r0 __asm__("r0") = operation;
  register const void *r1 __asm__("r1") = argument;
  __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
  return r0;
#endif
}

void finish(int status) {
  const uint32_t block[2] = {APPLICATION_EXIT, (uint32_t)status};
  semihost(EXIT_EXTENDED, block);
  for (;;) {
  }
}

static int open_file(const char *name, unsigned length, unsigned mode) {
  const uintptr_t block[3] = {(uintptr_t)name, mode, length};
  return semihost(OPEN, block);
}

static int input_file, result_file;

static void write_bytes(const void *data, unsigned size) {
  const uintptr_t block[3] = {(uintptr_t)result_file, (uintptr_t)data, size};
  if (semihost(WRITE, block) != 0) finish(2);
}

/* Returns how many bytes were not there any more. */
static unsigned read_bytes(void *data, unsigned size) {
  const uintptr_t block[3] = {(uintptr_t)input_file, (uintptr_t)data, size};
  return (unsigned)semihost(READ, block);
}

static int at_end;

static void read_row(void *context, unsigned row, hwp_element *pixels, unsigned pitch) {
  (void)context, (void)row;
  for (unsigned channel = 0; channel < MODEL_INPUT_CHANNELS; channel++, pixels += pitch)
    if (read_bytes(pixels, MODEL_INPUT_WIDTH * sizeof *pixels)) at_end = 1;
}

/* Everything below the frame of whoever calls this. */
__attribute__((noinline)) static void paint_stack(void) {
  volatile uint8_t *end = (uint8_t *)__builtin_frame_address(0) - 64;
  for (volatile uint8_t *at = &stack_begin; at < end; at++) *at = PAINT;
}

static uint32_t used_stack(void) {
  const volatile uint8_t *at = &stack_begin;
  while (at < &stack_end && *at == PAINT) at++;
  return (uint32_t)(&stack_end - at);
}

int main(void) {
  input_file = open_file("input.bin", 9, OPEN_READ_BINARY);
  result_file = open_file("result.bin", 10, OPEN_WRITE_BINARY);
  if (input_file < 0 || result_file < 0) return 3;
  for (;;) {
    for (unsigned i = 0; i < TRACE_TENSORS; i++) trace_sums[i] = 0;
    paint_stack();
    const int status = hwp_run(&model_network, read_row, 0);
    const uint32_t stack = used_stack();
    if (at_end) return 0;
    write_bytes(&status, 4);
    write_bytes(trace_sums, 4 * TRACE_TENSORS);
    write_bytes(&stack, 4);
    if (status != HWP_OK) return 4;
  }
}
