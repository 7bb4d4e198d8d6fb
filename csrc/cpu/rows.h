#pragma once

#include "item.h"

namespace warpmerge {

// Per row and value of the tensors' formula, the sum or the largest. A tile is a range of row blocks (ops/rows.h).
class RowsItem final : public TensorItem {
 public:
  RowsItem(const Kernels& kernels, std::shared_ptr<Tensors> tensors, int64_t tile_elements, bool largest);
  int64_t tiles() const override;
  void finish(Worker&) override;
  int64_t rows() const { return rows_; }
  double* result() { return blocks_.data(); }  // values x rows

 protected:
  int64_t first_of(int64_t index) const override;
  void range(int64_t index, const Operands& operands, int64_t begin, int64_t count, Worker& worker,
             int64_t* nonfinite) override;

 private:
  const bool largest_;
  const int64_t columns_, rows_;
  const int64_t blocks_of_row_, blocks_of_tile_;
  std::vector<double> blocks_;  // values x rows x blocks of a row
};

}  // namespace warpmerge
