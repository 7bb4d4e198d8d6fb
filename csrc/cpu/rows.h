#pragma once

#include "item.h"

namespace warpmerge {

// Numbers per row. A tile is a range of row blocks (ops/rows.h).
class RowItem : public TensorItem {
 public:
  // `numbers`: how many per row.
  RowItem(const Kernels& kernels, std::shared_ptr<Tensors> tensors, int64_t tile_elements, int64_t numbers);
  int64_t tiles() const override;
  void finish(Worker&) override;
  int64_t numbers() const { return numbers_; }
  int64_t rows() const { return rows_; }
  double* result() { return blocks_.data(); }  // numbers x rows

 protected:
  int64_t first_of(int64_t index) const override;
  void range(int64_t index, const Operands& operands, int64_t begin, int64_t count, Worker& worker,
             int64_t* nonfinite) final;
  // Measures the row blocks of a tile; those of number m go to blocks + m * stride.
  virtual void measure(const Operands& operands, int64_t begin, int64_t count, double* blocks, int64_t stride,
                       Worker& worker, int64_t* nonfinite) = 0;
  // That of a row from those of its blocks, which are overwritten.
  virtual double together(double* blocks, int64_t count) const { return sum_blocks(blocks, count, 1); }

 private:
  const int64_t numbers_, columns_, rows_;
  const int64_t blocks_of_row_, blocks_of_tile_;
  std::vector<double> blocks_;  // numbers x rows x blocks of a row
};

// Per row and value of the tensors' formula, the sum or the largest.
class RowsItem final : public RowItem {
 public:
  RowsItem(const Kernels& kernels, std::shared_ptr<Tensors> tensors, int64_t tile_elements, bool largest);

 protected:
  void measure(const Operands& operands, int64_t begin, int64_t count, double* blocks, int64_t stride, Worker& worker,
               int64_t* nonfinite) override;
  double together(double* blocks, int64_t count) const override;

 private:
  const bool largest_;
};

}  // namespace warpmerge
