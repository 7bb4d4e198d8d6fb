#include "reduce_tensor.h"

namespace warpmerge {

TensorSumsItem::TensorSumsItem(const Kernels& kernels, std::shared_ptr<Tensors> tensors, int64_t tile_elements)
    : TensorSumsItem(kernels, tensors, tile_elements, tensors->values(), 0) {}

TensorSumsItem::TensorSumsItem(const Kernels& kernels, std::shared_ptr<Tensors> tensors, int64_t tile_elements,
                               int sums, int64_t columns)
    : TensorItem(kernels, tensors, whole_blocks(*tensors, tile_elements, columns), columns), sums_(sums) {
  blocks_.resize(size_t((tensors_->count + kBlock - 1) / kBlock * sums_));
}

void TensorSumsItem::range(int64_t, const Operands& operands, int64_t begin, int64_t count, Worker& worker,
                           int64_t* nonfinite) {
  if (tensors_->fp64)
    set<double>().tensor_sums(operands, begin, count, blocks_from(begin), scratch(worker), nonfinite);
  else
    set<float>().tensor_sums(operands, begin, count, blocks_from(begin), scratch(worker), nonfinite);
}

void TensorSumsItem::finish(Worker&) {
  const int64_t count = sums_ ? int64_t(blocks_.size()) / sums_ : 0;
  std::vector<double> result(size_t(sums_), 0.0);
  for (int k = 0; k < sums_ && count > 0; ++k) result[size_t(k)] = sum_blocks(&blocks_[size_t(k)], count, sums_);
  blocks_ = std::move(result);
}

KeptSumsItem::KeptSumsItem(const Kernels& kernels, std::shared_ptr<Tensors> tensors, int64_t tile_elements,
                           MaskRules rules)
    : TensorSumsItem(kernels, tensors, tile_elements, 2 * tensors->models(), rules.columns()),
      rules_(std::move(rules)) {}

void KeptSumsItem::range(int64_t, const Operands& operands, int64_t begin, int64_t count, Worker& worker,
                         int64_t* nonfinite) {
  rules_.decide(kernels_, tensors_->fp64, operands, begin, count, worker);
  if (tensors_->fp64)
    set<double>().kept_sums(operands, rules_.data(), begin, count, blocks_from(begin), scratch(worker), nonfinite);
  else
    set<float>().kept_sums(operands, rules_.data(), begin, count, blocks_from(begin), scratch(worker), nonfinite);
}

void KeptSumsItem::finish(Worker& worker) {
  rules_.finish();
  TensorSumsItem::finish(worker);
}

}  // namespace warpmerge
