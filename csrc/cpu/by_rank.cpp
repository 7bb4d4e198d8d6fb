#include "by_rank.h"

#include <stdexcept>

namespace warpmerge {

MaskRules::MaskRules(Tensors& tensors, std::vector<Mask> keep) : keep_(std::move(keep)) {
  for (int k = 0; k < int(keep_.size()); ++k) {
    Mask& rule = keep_[size_t(k)];
    if (rule.columns == 0) continue;
    if (tensors.formula || rule.columns < 0 || tensors.count % rule.columns)
      throw std::invalid_argument("a rule that keeps by rank needs deltas in whole rows");
    Decisions& decisions = tensors.decisions_of(k, rule);
    rule.decided = decisions.bits.data();
    if (decisions.complete) continue;
    if (columns_ && columns_ != rule.columns) throw std::invalid_argument("rows of several lengths in one tensor");
    columns_ = rule.columns;
    open_.push_back({k, &decisions});
  }
}

void MaskRules::decide(const Kernels& kernels, bool fp64, const Operands& operands, int64_t begin, int64_t count,
                       Worker& worker) const {
  for (const Open& open : open_) {
    const Mask& rule = keep_[size_t(open.model)];
    void* work = worker.rank_buffer(by_rank_work(columns_));
    uint8_t* bits = open.decisions->bits.data() + begin / 8;
    if (fp64)
      kernels.fp64.decide_by_rank(operands, open.model, rule, begin, count, bits, work);
    else
      kernels.fp32.decide_by_rank(operands, open.model, rule, begin, count, bits, work);
  }
}

void MaskRules::finish() const {
  for (const Open& open : open_) open.decisions->complete = true;
}

}  // namespace warpmerge
