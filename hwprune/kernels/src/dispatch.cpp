// Which instruction set computes: what was built, what the machine has, what HWPRUNE_SIMD allows.
#include <cstdlib>
#include <cstring>

#include "compute_api.h"
#include "kernel_api.h"

namespace hwprune {

#if defined(__x86_64__) || defined(__i386__)
namespace scalar {
extern const Compute kCompute;
}
namespace avx2 {
extern const Compute kCompute;
}
namespace avx512 {
extern const Compute kCompute;
}
#elif defined(__aarch64__)
namespace neon {
extern const Compute kCompute;
}
#else
namespace scalar {
extern const Compute kCompute;
}
#endif

namespace {

const Compute& choose() {
#if defined(__x86_64__) || defined(__i386__)
  const char* const wish = std::getenv("HWPRUNE_SIMD");
  const bool any = wish == nullptr || *wish == '\0';
  const bool allow_avx512 = any || std::strcmp(wish, "avx512") == 0;
  const bool allow_avx2 = allow_avx512 || std::strcmp(wish, "avx2") == 0;
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                          __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
  if (allow_avx512 && has_avx512) return avx512::kCompute;
  if (allow_avx2 && has_avx2) return avx2::kCompute;
  return scalar::kCompute;
#elif defined(__aarch64__)
  return neon::kCompute;  // every 64-bit Arm has it: there is nothing to lower to
#else
  return scalar::kCompute;
#endif
}

}  // namespace

const Compute& compute() {
  static const Compute& chosen = choose();
  return chosen;
}

const char* simd_name() { return compute().name; }

}  // namespace hwprune
