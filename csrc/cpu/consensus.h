#pragma once

#include "by_rank.h"

namespace warpmerge {

struct ConsensusCoefficientLists {
  std::vector<double> value, ballot, divisor;  // one per model
  double lambda = 1.0;
  bool elect = true;
};

class ConsensusItem final : public CombineItem {
 public:
  ConsensusItem(const Kernels& kernels, std::shared_ptr<Tensors> tensors, int64_t tile_elements,
                ConsensusCoefficientLists coefficients, KeepRules rules, Output output);

 protected:
  void combine(const Operands& operands, int64_t begin, int64_t count, void* const* out, Worker& worker,
               int64_t* nonfinite) override;

 private:
  const ConsensusCoefficientLists coefficients_;
  const KeepRules rules_;
};

}  // namespace warpmerge
