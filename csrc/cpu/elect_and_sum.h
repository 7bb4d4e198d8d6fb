// Elect-and-sum on one tensor: masks, an election of each element's sign, and the sum of the terms that agree.
//
// This is an accelerator. python/warpmerge/expr/library.py defines the result as an expression,
// csrc/ops/elect_and_sum.h has the steps for one element, and tests/expr/test_accelerators.py compares the bits. The
// expression stores votes, signs and terms of a stage in the cache. The kernel keeps those of an element in registers,
// and masks deltas while it loads them. In exchange there is code to maintain for one family of methods.
#pragma once

#include "by_rank.h"

namespace warpmerge {

struct ElectAndSumCoefficientLists {
  std::vector<double> value, vote, divisor;  // one per model
  double lambda = 1.0;
  bool elect = true;
};

class ElectAndSumItem final : public CombineItem {
 public:
  ElectAndSumItem(const Kernels& kernels, std::shared_ptr<Tensors> tensors, int64_t tile_elements,
                  ElectAndSumCoefficientLists coefficients, MaskRules rules, Output output);

 protected:
  void combine(const Operands& operands, int64_t begin, int64_t count, void* const* out, Worker& worker,
               int64_t* nonfinite) override;

 private:
  const ElectAndSumCoefficientLists coefficients_;
  const MaskRules rules_;
};

}  // namespace warpmerge
