#include "kernels.inl"

namespace warpmerge {
const Kernels kernels_baseline = all_kernels("baseline");
}
