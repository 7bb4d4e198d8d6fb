#include "gram.h"

namespace warpmerge {

GramItem::GramItem(const Kernels& kernels, std::shared_ptr<Tensors> tensors, int64_t tile_elements)
    : TensorItem(kernels, tensors, whole_blocks(*tensors, tile_elements)) {
  blocks_.resize((tensors_->count + kBlock - 1) / kBlock * gram_size(tensors_->models()));
}

void GramItem::range(int64_t, const Operands& operands, int64_t begin, int64_t count, Worker& worker,
                     int64_t* nonfinite) {
  const int64_t size = gram_size(tensors_->models());
  double* blocks = blocks_.data() + begin / kBlock * size;
  void* scratch = worker.scratch(scratch_size() + size_t(size) * kLanes * sizeof(double));
  if (tensors_->fp64)
    set<double>().gram(operands, begin, count, blocks, scratch, nonfinite);
  else
    set<float>().gram(operands, begin, count, blocks, scratch, nonfinite);
}

void GramItem::finish(Worker&) {
  const int64_t size = gram_size(tensors_->models());
  const int64_t count = int64_t(blocks_.size()) / size;
  for (int64_t s = 0; s < size; ++s) result_.push_back(count ? sum_blocks(&blocks_[s], count, size) : 0.0);
  blocks_ = {};
}

}  // namespace warpmerge
