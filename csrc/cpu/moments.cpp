#include "moments.h"

#include <algorithm>

namespace warpmerge {

MomentsItem::MomentsItem(const Kernels& kernels, std::shared_ptr<Tensors> tensors, int64_t tile_elements,
                         MaskRules rules, bool only_l1)
    : TensorItem(kernels, tensors, whole_blocks(*tensors, tile_elements, rules.columns()), rules.columns()),
      rules_(std::move(rules)),
      only_l1_(only_l1) {
  blocks_.resize((tensors_->count + kBlock - 1) / kBlock * tensors_->values());
}

void MomentsItem::range(int64_t, const Operands& operands, int64_t begin, int64_t count, Worker& worker,
                        int64_t* nonfinite) {
  rules_.decide(kernels_, tensors_->fp64, operands, begin, count, worker);
  Moments* blocks = blocks_.data() + begin / kBlock * tensors_->values();
  if (tensors_->fp64)
    set<double>().moments(operands, rules_.data(), only_l1_, begin, count, blocks, scratch(worker), nonfinite);
  else
    set<float>().moments(operands, rules_.data(), only_l1_, begin, count, blocks, scratch(worker), nonfinite);
}

void MomentsItem::finish(Worker&) {
  rules_.finish();
  const int models = tensors_->values();
  const int64_t count = int64_t(blocks_.size()) / std::max(1, models);
  const int64_t stride = models * int64_t(sizeof(Moments) / sizeof(double));
  static_assert(sizeof(Moments) % sizeof(double) == 0, "Moments are strided as doubles");
  result_.assign(size_t(models), Moments());
  for (int k = 0; k < models && count > 0; ++k) {
    Moments& total = result_[k];
    if (!only_l1_) total.min = blocks_[k].min, total.max = blocks_[k].max;
    for (int64_t b = 0; b < count && !only_l1_; ++b) {
      const Moments& block = blocks_[b * models + k];
      total.min = std::min(total.min, block.min);
      total.max = std::max(total.max, block.max);
      total.nonzero += block.nonzero;
      total.kept += block.kept;
    }
    total.sum_abs = sum_blocks(&blocks_[k].sum_abs, count, stride);
    total.sum_sq = sum_blocks(&blocks_[k].sum_sq, count, stride);
    total.kept_abs = sum_blocks(&blocks_[k].kept_abs, count, stride);
  }
  blocks_ = {};
}

}  // namespace warpmerge
