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
