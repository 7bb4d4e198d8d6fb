// Folds over the rows of a tensor: for each row a sum, a sum of products, or the largest value, in float64.
//
// This is `Reduce` over rows (python/warpmerge/requests.py); csrc/ops/reduce.h defines the order. Rows are cut into
// blocks of up to 4096 elements, and a tile is a range of such blocks. So several workers share a long row. Sums in
// float64 and largest values over a whole tensor are folds of one row that is the tensor (backends/primitives.py). In
// exchange the numbers of all blocks are in memory until the last tile.
#pragma once

#include "item.h"

namespace warpmerge {

// The terms that are folded of a formula's values, owned.
class TermList {
 public:
  // `pairs`: the two values of each product. Other kinds have no pairs: each value is a term. Throws
  // std::invalid_argument if a pair names a value that does not exist.
  TermList(Term kind, const std::vector<std::pair<int, int>>& pairs, int values);
  Terms data() const { return {first_.data(), second_.data(), int(first_.size()), kind_}; }
  int64_t size() const { return int64_t(first_.size()); }

 private:
  const Term kind_;
  std::vector<int> first_, second_;
};

// Gives every NaN the canonical bits.
void canonicalize(double* numbers, int64_t count);

// Folds of the rows of a formula's values.
class RowsItem final : public TensorItem {
 public:
  // `columns`: length of a row, at least 1. It need not be that of the formula's own rows.
  RowsItem(const Kernels& kernels, std::shared_ptr<Tensors> tensors, int64_t tile_elements, int64_t columns,
           TermList terms);
  int64_t tiles() const override;
  void finish(Worker&) override;
  int64_t terms() const { return terms_.size(); }
  int64_t rows() const { return rows_; }
  double* result() { return blocks_.data(); }  // terms x rows

 protected:
  int64_t first_of(int64_t index) const override;
  void range(int64_t index, const Operands& operands, int64_t begin, int64_t count, Worker& worker,
             int64_t* nonfinite) override;

 private:
  const TermList terms_;
  const int64_t columns_, rows_;
  const int64_t blocks_of_row_, blocks_of_tile_;
  std::vector<double> blocks_;  // terms x rows x blocks of a row
};

}  // namespace warpmerge
