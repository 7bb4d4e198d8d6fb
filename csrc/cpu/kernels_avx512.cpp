#include "kernels.inl"

namespace warpmerge {
const Kernels kernels_avx512{"avx512", kernel_set<float>(), kernel_set<double>(), digest};
}
