#include "rows.h"

namespace warpmerge {
namespace {

// Whole rows if ranks are asked for: to sort a row once per block of it would be slow.
int64_t blocks_of_tile(const Tensors& tensors, int64_t tile_elements, int64_t columns) {
  const int64_t each = std::min<int64_t>(columns, kBlock), row = blocks_of_row(columns);
  const int64_t blocks = std::max<int64_t>(1, tile_elements / each);
  return tensors.ranked() ? std::max<int64_t>(1, blocks / row) * row : blocks;
}

}  // namespace

RowItem::RowItem(const Kernels& kernels, std::shared_ptr<Tensors> tensors, int64_t tile_elements, int64_t numbers)
    : TensorItem(kernels, std::move(tensors), tile_elements),
      numbers_(numbers),
      columns_(tensors_->formula->program().columns),
      rows_(tensors_->count / columns_),
      blocks_of_row_(blocks_of_row(columns_)),
      blocks_of_tile_(blocks_of_tile(*tensors_, tile_elements, columns_)),
      blocks_(size_t(numbers_ * rows_ * blocks_of_row_)) {}

int64_t RowItem::tiles() const {
  return std::max<int64_t>(1, (rows_ * blocks_of_row_ + blocks_of_tile_ - 1) / blocks_of_tile_);
}

int64_t RowItem::first_of(int64_t index) const {
  const int64_t block = index * blocks_of_tile_, row = block / blocks_of_row_;
  return row < rows_ ? row * columns_ + block % blocks_of_row_ * kBlock : tensors_->count;
}

void RowItem::range(int64_t index, const Operands& operands, int64_t begin, int64_t count, Worker& worker,
                    int64_t* nonfinite) {
  measure(operands, begin, count, blocks_.data() + index * blocks_of_tile_, rows_ * blocks_of_row_, worker, nonfinite);
}

void RowItem::finish(Worker&) {
  if (blocks_of_row_ == 1) return;
  for (int64_t i = 0; i < numbers_ * rows_; ++i)
    blocks_[size_t(i)] = together(blocks_.data() + i * blocks_of_row_, blocks_of_row_);
  blocks_.resize(size_t(numbers_ * rows_));
}

RowsItem::RowsItem(const Kernels& kernels, std::shared_ptr<Tensors> tensors, int64_t tile_elements, bool largest)
    : RowItem(kernels, tensors, tile_elements, tensors->values()), largest_(largest) {}

void RowsItem::measure(const Operands& operands, int64_t begin, int64_t count, double* blocks, int64_t stride,
                       Worker& worker, int64_t* nonfinite) {
  if (tensors_->fp64)
    set<double>().rows(operands, largest_, begin, count, blocks, stride, scratch(worker), nonfinite);
  else
    set<float>().rows(operands, largest_, begin, count, blocks, stride, scratch(worker), nonfinite);
}

double RowsItem::together(double* blocks, int64_t count) const {
  return largest_ ? *std::max_element(blocks, blocks + count) : sum_blocks(blocks, count, 1);
}

}  // namespace warpmerge
