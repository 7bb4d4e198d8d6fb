#include "elect_and_sum.h"

namespace warpmerge {

ElectAndSumItem::ElectAndSumItem(const Kernels& kernels, std::shared_ptr<Tensors> tensors, int64_t tile_elements,
                                 ElectAndSumCoefficientLists coefficients, MaskRules rules, Output output)
    : CombineItem(kernels, tensors, tile_step(*tensors, tile_elements, kStage, rules.columns()), {std::move(output)},
                  rules.columns()),
      coefficients_(std::move(coefficients)),
      rules_(std::move(rules)) {}

void ElectAndSumItem::combine(const Operands& operands, int64_t begin, int64_t count, void* const* out, Worker& worker,
                              int64_t* nonfinite) {
  rules_.decide(kernels_, tensors_->fp64, operands, begin, count, worker);
  const auto& c = coefficients_;
  const ElectAndSumArgs args{c.value.data(), c.vote.data(), c.divisor.data(), rules_.data(), c.lambda, c.elect};
  const Dtype dtype = outputs_[0].dtype;
  if (tensors_->fp64)
    set<double>().elect_and_sum(operands, args, begin, count, out[0], dtype, scratch(worker), nonfinite);
  else
    set<float>().elect_and_sum(operands, args, begin, count, out[0], dtype, scratch(worker), nonfinite);
}

}  // namespace warpmerge
