#include "kernels.inl"

namespace warpmerge {
const Kernels kernels_avx2{"avx2", kernel_set<float>(), kernel_set<double>(), digest};
}
