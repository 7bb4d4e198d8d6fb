// Sums over a tensor in the compute type: of each delta, or of each value of a formula.
//
// This is `Reduce` over a tensor (python/warpmerge/requests.py), for sums in the compute type and for counts;
// csrc/ops/reduce.h defines the order. Blocks of 4096 elements are summed in the compute type, and the sums of blocks
// in float64. So vectors hold as many elements as they can, and only sums within a block are rounded to float32. In
// exchange the sums of all blocks are in memory until the last tile.
#pragma once

#include "by_rank.h"

namespace warpmerge {

// Sums over a tensor. Its tiles are whole blocks.
class TensorSumsItem : public TensorItem {
 public:
  TensorSumsItem(const Kernels& kernels, std::shared_ptr<Tensors> tensors, int64_t tile_elements);
  void finish(Worker&) override;
  const std::vector<double>& result() const { return blocks_; }  // after `finish`: one number for each sum

 protected:
  // `sums`: their number. `columns`: length of the rows that tiles load whole; 0: none.
  TensorSumsItem(const Kernels& kernels, std::shared_ptr<Tensors> tensors, int64_t tile_elements, int sums,
                 int64_t columns);
  void range(int64_t index, const Operands& operands, int64_t begin, int64_t count, Worker& worker,
             int64_t* nonfinite) override;
  double* blocks_from(int64_t element) { return blocks_.data() + element / kBlock * sums_; }

 private:
  const int sums_;
  std::vector<double> blocks_;  // blocks x sums
};

// Per model the sums of |delta| and of |masked delta|, side by side. An accelerator for the pattern KeptMagnitudes
// (python/warpmerge/expr/patterns.py).
class KeptSumsItem final : public TensorSumsItem {
 public:
  KeptSumsItem(const Kernels& kernels, std::shared_ptr<Tensors> tensors, int64_t tile_elements, MaskRules rules);
  void finish(Worker& worker) override;

 protected:
  void range(int64_t index, const Operands& operands, int64_t begin, int64_t count, Worker& worker,
             int64_t* nonfinite) override;

 private:
  const MaskRules rules_;
};

}  // namespace warpmerge
