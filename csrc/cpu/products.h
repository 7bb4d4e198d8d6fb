#pragma once

#include <mutex>

#include "rows.h"

namespace warpmerge {

// Which values of a formula are multiplied with which, owned.
class Pairs {
 public:
  // Throws std::invalid_argument if one names a value that is not there.
  Pairs(const std::vector<std::pair<int, int>>& pairs, int values);
  ProductPairs data() const { return {first_.data(), second_.data(), int(first_.size())}; }
  size_t size() const { return first_.size(); }

 private:
  std::vector<int> first_, second_;
};

// Per row and pair, the sum of products.
class RowProductsItem final : public RowItem {
 public:
  RowProductsItem(const Kernels& kernels, std::shared_ptr<Tensors> tensors, int64_t tile_elements, Pairs pairs);
  void finish(Worker&) override;

 protected:
  void measure(const Operands& operands, int64_t begin, int64_t count, double* blocks, int64_t stride, Worker& worker,
               int64_t* nonfinite) override;

 private:
  const Pairs pairs_;
};

// Per column and pair, the sum of products. A tile is a block of rows (ops/products.h), of which a worker reads
// `tile_elements` at a time.
class ColumnProductsItem final : public TensorItem {
 public:
  ColumnProductsItem(const Kernels& kernels, std::shared_ptr<Tensors> tensors, int64_t tile_elements, Pairs pairs);
  int64_t tiles() const override { return std::max<int64_t>(1, blocks_); }
  void tile(int64_t index, Worker& worker) override;
  void finish(Worker&) override;
  int64_t pairs() const { return int64_t(pairs_.size()); }
  int64_t columns() const { return columns_; }
  double* result() { return result_.data(); }  // pairs x columns

 protected:
  int64_t first_of(int64_t index) const override { return std::min(index * block_elements_, tensors_->count); }
  void range(int64_t index, const Operands& operands, int64_t begin, int64_t count, Worker& worker,
             int64_t* nonfinite) override;

 private:
  double* sums_of(int64_t block) { return sums_.get() + block * pairs() * columns_; }

  const Pairs pairs_;
  const int64_t columns_, block_elements_, blocks_;
  const int64_t at_once_;  // elements
  std::once_flag allocated_;
  std::unique_ptr<double[]> sums_;  // blocks x pairs x columns, from the first tile to the last
  std::vector<double> result_;
};

}  // namespace warpmerge
