#include "kernels.inl"

namespace warpmerge {
const Kernels kernels_avx2 = all_kernels("avx2");
}
