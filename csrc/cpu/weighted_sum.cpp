#include "weighted_sum.h"

namespace warpmerge {

WeightedSumItem::WeightedSumItem(const Kernels& kernels, std::shared_ptr<Tensors> tensors, int64_t tile_elements,
                                 std::vector<double> coefficients, bool agree, std::vector<Output> outputs)
    : CombineItem(kernels, std::move(tensors), tile_elements, std::move(outputs)),
      coefficients_(std::move(coefficients)),
      agree_(agree) {}

void WeightedSumItem::combine(const Operands& operands, int64_t begin, int64_t count, void* const* out, Worker& worker,
                              int64_t* nonfinite) {
  const WeightedSumArgs args{coefficients_.data(), int(outputs_.size()), agree_};
  const Dtype dtype = outputs_[0].dtype;
  if (tensors_->fp64)
    set<double>().weighted_sum(operands, args, begin, count, out, dtype, scratch(worker), nonfinite);
  else
    set<float>().weighted_sum(operands, args, begin, count, out, dtype, scratch(worker), nonfinite);
}

}  // namespace warpmerge
