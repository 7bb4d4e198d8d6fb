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
