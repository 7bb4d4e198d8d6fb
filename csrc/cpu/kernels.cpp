#include "kernels.h"

#include <cstring>

namespace warpmerge {

const Kernels* find_kernels(const char* name) {
  const bool any = !name || !*name;
#if defined(__x86_64__)
  __builtin_cpu_init();
  // x86-64-v4 and -v3, feature by feature: older compilers do not know the level names.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  if (avx512 && (any || !std::strcmp(name, "avx512"))) return &kernels_avx512;
  if (avx2 && (any || !std::strcmp(name, "avx2"))) return &kernels_avx2;
#endif
  if (any || !std::strcmp(name, "baseline")) return &kernels_baseline;
  return nullptr;
}

}  // namespace warpmerge
