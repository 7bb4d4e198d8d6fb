// The request `Gram` on one tensor: squared norms of the inputs, and squared distances of all pairs of inputs.
//
// csrc/ops/gram.h defines the terms and the layout, csrc/ops/reduce.h the order of the sums. One read of the inputs
// serves all pairs. The sums of each block of 4096 elements are kept until the last tile, then added pairwise. So the
// bits do not depend on the number of threads. In exchange each block takes K (K + 1) / 2 doubles for K inputs.
#pragma once

#include "item.h"

namespace warpmerge {

class GramItem final : public TensorItem {
 public:
  GramItem(const Kernels& kernels, std::shared_ptr<Tensors> tensors, int64_t tile_elements);
  void finish(Worker&) override;
  const std::vector<double>& result() const { return result_; }  // layout: ops/gram.h

 protected:
  void range(int64_t index, const Operands& operands, int64_t begin, int64_t count, Worker& worker,
             int64_t* nonfinite) override;

 private:
  std::vector<double> blocks_;  // blocks x gram_size
  std::vector<double> result_;
};

}  // namespace warpmerge
