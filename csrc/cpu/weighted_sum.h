#pragma once

#include "item.h"

namespace warpmerge {

// Outputs of one dtype; `coefficients` is outputs x models.
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
