// Weighted sums of a tensor's inputs: one output for each row of coefficients, from one read of the inputs.
//
// This is an accelerator. python/warpmerge/expr/library.py defines the sum as an expression, csrc/ops/weighted_sum.h
// has its two exact rules, and tests/expr/test_accelerators.py compares the bits. The expression stores and loads every
// term of a stage; the kernel adds in registers. That saves about 8 % of the CPU time of a `linear` merge, and 2 to 3 %
// of a `task_arithmetic` merge (docs/decisions.md). In exchange there is one more kernel to maintain.
#pragma once

#include "item.h"

namespace warpmerge {

// `coefficients` is outputs x models. The outputs have one dtype. With `agree`, an element whose inputs are
// bit-identical is that input.
class WeightedSumItem final : public CombineItem {
 public:
  WeightedSumItem(const Kernels& kernels, std::shared_ptr<Tensors> tensors, int64_t tile_elements,
                  std::vector<double> coefficients, bool agree, std::vector<Output> outputs);

 protected:
  void combine(const Operands& operands, int64_t begin, int64_t count, void* const* out, Worker& worker,
               int64_t* nonfinite) override;

 private:
  const std::vector<double> coefficients_;
  const bool agree_;
};

}  // namespace warpmerge
