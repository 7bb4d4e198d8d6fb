#include "reduce_columns.h"

namespace warpmerge {
namespace {

// As many whole rows as `tile_elements` holds. A longer row is cut into whole stages, unless its ranks are asked for.
int64_t elements_at_once(const Tensors& tensors, int64_t tile_elements, int64_t columns) {
  if (columns <= tile_elements || tensors.ranked()) return std::max<int64_t>(1, tile_elements / columns) * columns;
  return tile_elements;
}

}  // namespace

ColumnsItem::ColumnsItem(const Kernels& kernels, std::shared_ptr<Tensors> tensors, int64_t tile_elements,
                         int64_t columns, TermList terms)
    : TensorItem(kernels, std::move(tensors), tile_elements),
      terms_(std::move(terms)),
      columns_(columns),
      block_elements_(rows_of_column_block(tensors_->count / columns_, columns_) * columns_),
      blocks_(tensors_->count ? (tensors_->count + block_elements_ - 1) / block_elements_ : 0),
      at_once_(elements_at_once(*tensors_, tile_elements, columns_)) {}

void ColumnsItem::tile(int64_t index, Worker& worker) {
  // Allocated with the first tile: items that wait need no memory yet.
  std::call_once(allocated_,
                 [&] { found_.reset(new double[size_t(std::max<int64_t>(1, blocks_) * terms() * columns_)]); });
  const bool largest = terms_.data().kind == Term::largest && tensors_->count;
  std::fill_n(found_in(index), terms() * columns_, largest ? -INFINITY : 0.0);
  const int64_t end = first_of(index + 1);
  for (int64_t begin = first_of(index); begin < end;) {
    const int64_t row_end = begin - begin % columns_ + std::max(at_once_, columns_);
    const int64_t stop = std::min({begin + at_once_, row_end, end});
    part(index, begin, stop - begin, worker);
    begin = stop;
  }
}

void ColumnsItem::range(int64_t index, const Operands& operands, int64_t begin, int64_t count, Worker& worker,
                        int64_t* nonfinite) {
  const Terms terms = terms_.data();
  void* scratch = worker.scratch(scratch_size() + scratch_bytes(tensors_->values(), terms));
  if (tensors_->fp64)
    set<double>().reduce_columns(operands, terms, columns_, begin, count, found_in(index), scratch, nonfinite);
  else
    set<float>().reduce_columns(operands, terms, columns_, begin, count, found_in(index), scratch, nonfinite);
}

void ColumnsItem::finish(Worker&) {
  const int64_t size = terms() * columns_;
  const bool largest = terms_.data().kind == Term::largest;
  for (int64_t count = blocks_; count > 1; count = (count + 1) / 2) {  // as fold_blocks does, all columns at once
    for (int64_t b = 0; b < count / 2; ++b)
      for (int64_t i = 0; i < size; ++i) {
        const double first = found_in(2 * b)[i], second = found_in(2 * b + 1)[i];
        found_in(b)[i] = largest ? Larger::of(first, second) : Add::of(first, second);
      }
    if (count % 2) std::copy_n(found_in(count - 1), size, found_in(count / 2));
  }
  result_.assign(found_.get(), found_.get() + size);
  found_.reset();
  for (double& number : result_) number = number + 0.0;  // a largest value of -0 is +0
  canonicalize(result_.data(), size);
}

}  // namespace warpmerge
