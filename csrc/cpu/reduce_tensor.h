#pragma once

#include "by_rank.h"

namespace warpmerge {

// Sums over a tensor in the compute type: of each delta, or of each value of the tensors' formula.
class TensorSumsItem : public TensorItem {
 public:
  TensorSumsItem(const Kernels& kernels, std::shared_ptr<Tensors> tensors, int64_t tile_elements);
  void finish(Worker&) override;
  const std::vector<double>& result() const { return blocks_; }  // behind `finish`: one per sum

 protected:
  // `sums`: how many; `columns`: of the rows that tiles need whole, 0 for none.
  TensorSumsItem(const Kernels& kernels, std::shared_ptr<Tensors> tensors, int64_t tile_elements, int sums,
                 int64_t columns);
  void range(int64_t index, const Operands& operands, int64_t begin, int64_t count, Worker& worker,
             int64_t* nonfinite) override;
  double* blocks_from(int64_t element) { return blocks_.data() + element / kBlock * sums_; }

 private:
  const int sums_;
  std::vector<double> blocks_;  // blocks x sums
};

// Per model the sums of |delta| and of |what its mask leaves of it|, one behind the other.
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
