#pragma once

#include "by_rank.h"

namespace warpmerge {

class MomentsItem final : public TensorItem {
 public:
  MomentsItem(const Kernels& kernels, std::shared_ptr<Tensors> tensors, int64_t tile_elements, MaskRules rules,
              bool only_l1);
  void finish(Worker&) override;
  const std::vector<Moments>& result() const { return result_; }  // one per delta or value

 protected:
  void range(int64_t index, const Operands& operands, int64_t begin, int64_t count, Worker& worker,
             int64_t* nonfinite) override;

 private:
  const MaskRules rules_;
  const bool only_l1_;
  std::vector<Moments> blocks_;  // blocks x models
  std::vector<Moments> result_;
};

}  // namespace warpmerge
