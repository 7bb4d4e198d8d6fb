#pragma once

#include <mutex>

#include "item.h"

namespace warpmerge {

// How many keys of each delta or value lie above an interval [low, high], and in up to kHistogramBins bins of it.
class HistogramItem final : public TensorItem {
 public:
  HistogramItem(const Kernels& kernels, std::shared_ptr<Tensors> tensors, int64_t tile_elements,
                std::vector<std::pair<uint64_t, uint64_t>> intervals, int threads);
  void finish(Worker&) override;
  const std::vector<int64_t>& above() const { return above_; }
  std::vector<int> shifts() const;
  int64_t* bins() { return bins_.data(); }  // one row of kHistogramBins per delta or value

 protected:
  void range(int64_t index, const Operands& operands, int64_t begin, int64_t count, Worker& worker,
             int64_t* nonfinite) override;

 private:
  // Of one worker; none touches another's.
  struct Share {
    std::vector<uint32_t> bins;
    std::vector<int64_t> above;
    int64_t counted = 0;
  };
  void add(Share& share);

  std::vector<HistogramInterval> intervals_;
  std::vector<Share> shares_;
  std::mutex mutex_;
  std::vector<int64_t> above_, bins_;
};

}  // namespace warpmerge
