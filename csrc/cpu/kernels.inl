// All loops over a tile. kernels_<isa>.cpp compiles them with the flags of its instruction set.
//
// No file here includes the C++ standard library. The linker keeps one copy of an inline function for the whole
// program; if that copy were compiled for AVX-512, other processors could not run it.

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#include <math.h>

#include "../ops/convert.h"
#include "../ops/digest.h"
#include "../ops/elect_and_sum.h"
#include "../ops/elementary.h"
#include "../ops/select.h"
#include "../ops/weighted_sum.h"
#include "kernels.h"

namespace warpmerge {
namespace {

// clang-format off: each builds on those before it
#include "draw.inl"
#include "stage.inl"
#include "ranks.inl"
#include "key_steps.inl"
#include "by_rank.inl"
#include "formula.inl"
#include "elect_and_sum.inl"
#include "digest.inl"
#include "reduce_tensor.inl"
#include "gram.inl"
#include "select.inl"
#include "histogram.inl"
#include "reduce_rows.inl"
#include "reduce_columns.inl"
#include "weighted_sum.inl"
#include "low_rank.inl"
// clang-format on

template <class T>
constexpr KernelSet<T> kernel_set() {
  return {weighted_sum<T>, elect_and_sum<T>, formula<T>,   tensor_sums<T>, kept_sums<T>,      gram<T>,          keys<T>,
          collect<T>,      select<T>,        histogram<T>, reduce_rows<T>, reduce_columns<T>, decide_by_rank<T>};
}

constexpr Kernels all_kernels(const char* isa) {
  return {isa, kernel_set<float>(), kernel_set<double>(), digest, add_low_rank, low_rank_squares, convert};
}

}  // namespace
}  // namespace warpmerge
