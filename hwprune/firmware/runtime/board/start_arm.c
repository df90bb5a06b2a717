/* From reset to main on Cortex-M, without a C library. */
#include <stdint.h>

extern uint32_t data_load, data_begin, data_end, bss_begin, bss_end, stack_end;
int main(void);
void reset(void);
void finish(int status);

__attribute__((weak)) void finish(int status) {
  (void)status;
  for (;;) {
  }
}

static void fault(void) { finish(99); }

void reset(void) {
#if defined(__ARM_FP) || defined(__ARM_FEATURE_MVE)
  *(volatile uint32_t *)0xE000ED88u |= 0xFu << 20; /* CPACR: switch the floating-point unit on */
  __asm__ volatile("dsb\nisb");
#endif
  const uint32_t *from = &data_load;
  for (uint32_t *to = &data_begin; to < &data_end;) *to++ = *from++;
  for (uint32_t *to = &bss_begin; to < &bss_end;) *to++ = 0;
  finish(main());
}

/* The stack's first address, then where each of the core's own exceptions goes. */
__attribute__((section(".vectors"), used)) const void *const vectors[16] = {
    &stack_end, (void *)reset, (void *)fault, (void *)fault, (void *)fault, (void *)fault,
    (void *)fault};
