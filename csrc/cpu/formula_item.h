// The request `Map` on one tensor: expressions that are evaluated for each element, one output for each expression.
//
// formula.h has the program, formula.inl the interpreter; docs/numerics.md ("Formulas") defines the results. With a
// base, a value is a delta and is added to the base. A method whose merge is element-wise runs here without a kernel of
// its own. In exchange each operation loads and stores a stage in the first-level cache.
#pragma once

#include "item.h"

namespace warpmerge {

// One output for each value of the tensors' formula. If the first `agree` inputs of an element are bit-identical, the
// output is that input. `agree` 0: there is no such rule.
class FormulaItem final : public CombineItem {
 public:
  FormulaItem(const Kernels& kernels, std::shared_ptr<Tensors> tensors, int64_t tile_elements, int agree,
              std::vector<Output> outputs);

 protected:
  void combine(const Operands& operands, int64_t begin, int64_t count, void* const* out, Worker& worker,
               int64_t* nonfinite) override;

 private:
  const int agree_;
};

}  // namespace warpmerge
