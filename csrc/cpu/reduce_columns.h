// Folds over the columns of a tensor: for each column a sum, a sum of products, or the largest value, in float64.
//
// This is `Reduce` over columns (python/warpmerge/requests.py); csrc/ops/reduce.h defines the order. The rows are cut
// into blocks. A tile is a block, and a worker reads `tile_elements` of it at a time. Each block has its own numbers
// for all columns, so workers share nothing until the end. The number of blocks depends on the shape alone, so the bits
// do not depend on the number of threads. In exchange the numbers of all blocks are in memory at once: 4 MiB for each
// term, unless a row is longer.
#pragma once

#include <mutex>

#include "reduce_rows.h"

namespace warpmerge {

// Folds of the columns of a formula's values.
class ColumnsItem final : public TensorItem {
 public:
  // `columns`: length of a row, at least 1. If the formula has rows, it is their length.
  ColumnsItem(const Kernels& kernels, std::shared_ptr<Tensors> tensors, int64_t tile_elements, int64_t columns,
              TermList terms);
  int64_t tiles() const override { return std::max<int64_t>(1, blocks_); }
  void tile(int64_t index, Worker& worker) override;
  void finish(Worker&) override;
  int64_t terms() const { return terms_.size(); }
  int64_t columns() const { return columns_; }
  double* result() { return result_.data(); }  // terms x columns

 protected:
  int64_t first_of(int64_t index) const override { return std::min(index * block_elements_, tensors_->count); }
  void range(int64_t index, const Operands& operands, int64_t begin, int64_t count, Worker& worker,
             int64_t* nonfinite) override;

 private:
  double* found_in(int64_t block) { return found_.get() + block * terms() * columns_; }

  const TermList terms_;
  const int64_t columns_, block_elements_, blocks_;
  const int64_t at_once_;  // elements
  std::once_flag allocated_;
  std::unique_ptr<double[]> found_;  // blocks x terms x columns, from the first tile to the last
  std::vector<double> result_;
};

}  // namespace warpmerge
