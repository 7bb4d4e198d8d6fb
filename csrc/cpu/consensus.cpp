#include "consensus.h"

namespace warpmerge {

ConsensusItem::ConsensusItem(const Kernels& kernels, std::shared_ptr<Tensors> tensors, int64_t tile_elements,
                             ConsensusCoefficientLists coefficients, std::vector<Keep> keep, Output output)
    : CombineItem(kernels, std::move(tensors), tile_elements, {std::move(output)}),
      coefficients_(std::move(coefficients)),
      keep_(std::move(keep)) {}

void ConsensusItem::combine(const Operands& operands, int64_t begin, int64_t count, void* const* out, Worker& worker,
                            int64_t* nonfinite) {
  const auto& c = coefficients_;
  const ConsensusArgs args{c.value.data(), c.ballot.data(), c.divisor.data(), keep_.data(), c.lambda, c.elect};
  const Dtype dtype = outputs_[0].dtype;
  if (tensors_->wide)
    set<double>().consensus(operands, args, begin, count, out[0], dtype, scratch(worker), nonfinite);
  else
    set<float>().consensus(operands, args, begin, count, out[0], dtype, scratch(worker), nonfinite);
}

}  // namespace warpmerge
