#include "kernels.inl"

namespace warpmerge {
const Kernels kernels_baseline{"baseline", kernel_set<float>(), kernel_set<double>(), digest};
}
