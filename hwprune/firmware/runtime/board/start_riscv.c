/* From reset to main on RISC-V, without a C library. */
#include <stdint.h>

extern uint32_t data_load, data_begin, data_end, bss_begin, bss_end;
int main(void);
void begin(void);
void finish(int status);

__attribute__((weak)) void finish(int status) {
  (void)status;
  for (;;) {
  }
}

static __attribute__((used, aligned(4))) void fault(void) { finish(99); }

__attribute__((used)) void begin(void) {
  const uint32_t *from = &data_load;
  for (uint32_t *to = &data_begin; to < &data_end;) *to++ = *from++;
  for (uint32_t *to = &bss_begin; to < &bss_end;) *to++ = 0;
  finish(main());
}

__attribute__((naked, section(".vectors"), used)) void reset(void) {
  __asm__ volatile(
      ".option push\n.option arch, +zicsr\n" /* compilers since GCC 12 do not imply it */
      "la sp, stack_end\n"
      "la t0, fault\n"
      "csrw mtvec, t0\n"
#ifdef __riscv_flen
      "li t0, 0x2000\n" /* mstatus.FS: switch the floating-point unit on */
      "csrs mstatus, t0\n"
#endif
      ".option pop\n"
      "j begin\n");
}
