#pragma once

#include "item.h"

namespace warpmerge {

// One output for each value of the tensors' formula. `agree`: where so many first inputs are the same, bit for bit, the
// result is they.
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
