#include "reduce_rows.h"

#include <stdexcept>

namespace warpmerge {
namespace {

// Whole rows if ranks are asked for: else each block of a row would sort the row anew.
int64_t blocks_of_tile(const Tensors& tensors, int64_t tile_elements, int64_t columns) {
  const int64_t each = std::min<int64_t>(columns, kBlock), row = blocks_of_row(columns);
  const int64_t blocks = std::max<int64_t>(1, tile_elements / each);
  return tensors.ranked() ? std::max<int64_t>(1, blocks / row) * row : blocks;
}

}  // namespace

TermList::TermList(Term kind, const std::vector<std::pair<int, int>>& pairs, int values) : kind_(kind) {
  if (kind != Term::product)
    for (int k = 0; k < values; ++k) first_.push_back(k), second_.push_back(k);
  for (const auto& [first, second] : pairs) {
    if (kind != Term::product || first < 0 || first >= values || second < 0 || second >= values)
      throw std::invalid_argument("a product names a value that is not there");
    first_.push_back(first), second_.push_back(second);
  }
}

void canonicalize(double* numbers, int64_t count) {
  for (int64_t i = 0; i < count; ++i)
    if (numbers[i] != numbers[i]) numbers[i] = bit_cast<double>(FloatTraits<double>::quiet_nan);
}

RowsItem::RowsItem(const Kernels& kernels, std::shared_ptr<Tensors> tensors, int64_t tile_elements, int64_t columns,
                   TermList terms)
    : TensorItem(kernels, std::move(tensors), tile_elements),
      terms_(std::move(terms)),
      columns_(columns),
      rows_(tensors_->count / columns_),
      blocks_of_row_(blocks_of_row(columns_)),
      blocks_of_tile_(blocks_of_tile(*tensors_, tile_elements, columns_)),
      blocks_(size_t(terms_.size() * rows_ * blocks_of_row_)) {}

int64_t RowsItem::tiles() const {
  return std::max<int64_t>(1, (rows_ * blocks_of_row_ + blocks_of_tile_ - 1) / blocks_of_tile_);
}

int64_t RowsItem::first_of(int64_t index) const {
  const int64_t block = index * blocks_of_tile_, row = block / blocks_of_row_;
  return row < rows_ ? row * columns_ + block % blocks_of_row_ * kBlock : tensors_->count;
}

void RowsItem::range(int64_t index, const Operands& operands, int64_t begin, int64_t count, Worker& worker,
                     int64_t* nonfinite) {
  const Terms terms = terms_.data();
  const int64_t stride = rows_ * blocks_of_row_;
  double* blocks = blocks_.data() + index * blocks_of_tile_;
  void* scratch = worker.scratch(scratch_size() + scratch_bytes(tensors_->values(), terms));
  if (tensors_->fp64)
    set<double>().reduce_rows(operands, terms, columns_, begin, count, blocks, stride, scratch, nonfinite);
  else
    set<float>().reduce_rows(operands, terms, columns_, begin, count, blocks, stride, scratch, nonfinite);
}

void RowsItem::finish(Worker&) {
  const int64_t found = terms_.size() * rows_;
  const auto fold = terms_.data().kind == Term::largest ? fold_blocks<Larger> : fold_blocks<Add>;
  for (int64_t i = 0; i < found && blocks_of_row_ > 1; ++i)
    blocks_[size_t(i)] = fold(blocks_.data() + i * blocks_of_row_, blocks_of_row_, 1);
  blocks_.resize(size_t(found));
  canonicalize(blocks_.data(), found);
}

}  // namespace warpmerge
