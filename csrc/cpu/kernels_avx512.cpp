#include "kernels.inl"

namespace warpmerge {
const Kernels kernels_avx512 = all_kernels("avx512");
}
