#include "products.h"

#include <stdexcept>

namespace warpmerge {
namespace {

void canonicalize(double* sums, int64_t count) {
  for (int64_t i = 0; i < count; ++i)
    if (sums[i] != sums[i]) sums[i] = bit_cast<double>(FloatTraits<double>::quiet_nan);
}

// As many whole rows as make `tile_elements`; of a longer row, whole stages.
int64_t elements_at_once(const Tensors& tensors, int64_t tile_elements, int64_t columns) {
  if (columns <= tile_elements || tensors.ranked()) return std::max<int64_t>(1, tile_elements / columns) * columns;
  return tile_elements;
}

}  // namespace

Pairs::Pairs(const std::vector<std::pair<int, int>>& pairs, int values) {
  for (const auto& [first, second] : pairs) {
    if (first < 0 || first >= values || second < 0 || second >= values)
      throw std::invalid_argument("a product names a value that is not there");
    first_.push_back(first), second_.push_back(second);
  }
}

RowProductsItem::RowProductsItem(const Kernels& kernels, std::shared_ptr<Tensors> tensors, int64_t tile_elements,
                                 Pairs pairs)
    : RowItem(kernels, std::move(tensors), tile_elements, int64_t(pairs.size())), pairs_(std::move(pairs)) {}

void RowProductsItem::measure(const Operands& operands, int64_t begin, int64_t count, double* blocks, int64_t stride,
                              Worker& worker, int64_t* nonfinite) {
  const ProductPairs pairs = pairs_.data();
  void* scratch = worker.scratch(scratch_size() + scratch_bytes(*operands.program, pairs));
  if (tensors_->fp64)
    set<double>().row_products(operands, pairs, begin, count, blocks, stride, scratch, nonfinite);
  else
    set<float>().row_products(operands, pairs, begin, count, blocks, stride, scratch, nonfinite);
}

void RowProductsItem::finish(Worker& worker) {
  RowItem::finish(worker);
  canonicalize(result(), numbers() * rows());
}

ColumnProductsItem::ColumnProductsItem(const Kernels& kernels, std::shared_ptr<Tensors> tensors, int64_t tile_elements,
                                       Pairs pairs)
    : TensorItem(kernels, std::move(tensors), tile_elements),
      pairs_(std::move(pairs)),
      columns_(tensors_->formula->program().columns),
      block_elements_(rows_of_column_block(tensors_->count / columns_, columns_) * columns_),
      blocks_(tensors_->count ? (tensors_->count + block_elements_ - 1) / block_elements_ : 0),
      at_once_(elements_at_once(*tensors_, tile_elements, columns_)) {}

void ColumnProductsItem::tile(int64_t index, Worker& worker) {
  // Not before: of the items that wait, none needs its memory yet.
  std::call_once(allocated_,
                 [&] { sums_.reset(new double[size_t(std::max<int64_t>(1, blocks_) * pairs() * columns_)]); });
  std::fill_n(sums_of(index), pairs() * columns_, 0.0);
  const int64_t end = first_of(index + 1);
  for (int64_t begin = first_of(index); begin < end;) {
    const int64_t row_end = begin - begin % columns_ + std::max(at_once_, columns_);
    const int64_t stop = std::min({begin + at_once_, row_end, end});
    part(index, begin, stop - begin, worker);
    begin = stop;
  }
}

void ColumnProductsItem::range(int64_t index, const Operands& operands, int64_t begin, int64_t count, Worker& worker,
                               int64_t* nonfinite) {
  const ProductPairs pairs = pairs_.data();
  void* scratch = worker.scratch(scratch_size() + scratch_bytes(*operands.program, pairs));
  if (tensors_->fp64)
    set<double>().column_products(operands, pairs, begin, count, sums_of(index), scratch, nonfinite);
  else
    set<float>().column_products(operands, pairs, begin, count, sums_of(index), scratch, nonfinite);
}

void ColumnProductsItem::finish(Worker&) {
  const int64_t size = pairs() * columns_;
  for (int64_t count = blocks_; count > 1; count = (count + 1) / 2) {  // as sum_blocks, all sums at once
    for (int64_t b = 0; b < count / 2; ++b)
      for (int64_t i = 0; i < size; ++i) sums_of(b)[i] = sums_of(2 * b)[i] + sums_of(2 * b + 1)[i];
    if (count % 2) std::copy_n(sums_of(count - 1), size, sums_of(count / 2));
  }
  result_.assign(sums_.get(), sums_.get() + size);
  sums_.reset();
  canonicalize(result_.data(), size);
}

}  // namespace warpmerge
