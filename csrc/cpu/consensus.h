#pragma once

#include "item.h"

namespace warpmerge {

struct ConsensusCoefficientLists {
  std::vector<double> value, ballot, divisor;  // one per model
  double lambda = 1.0;
  bool elect = true;
};

class ConsensusItem final : public CombineItem {
 public:
  ConsensusItem(const Kernels& kernels, std::shared_ptr<Tensors> tensors, int64_t tile_elements,
                ConsensusCoefficientLists coefficients, std::vector<Keep> keep, Output output);

 protected:
  void combine(const Operands& operands, int64_t begin, int64_t count, void* const* out, Worker& worker,
               int64_t* nonfinite) override;

 private:
  const ConsensusCoefficientLists coefficients_;
  const std::vector<Keep> keep_;
};

}  // namespace warpmerge
