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
  // Of a delta or value: the key in each bin that is not empty, kSeveralKeys if there are several. Empty if bins are
  // of one key anyway.
  const std::vector<uint64_t>& only(size_t value) const { return only_.at(value); }

 protected:
  void range(int64_t index, const Operands& operands, int64_t begin, int64_t count, Worker& worker,
             int64_t* nonfinite) override;

 private:
  // Of one worker; none touches another's.
  struct Share {
    std::vector<uint32_t> bins;
    std::vector<std::vector<uint64_t>> only;
    std::vector<int64_t> above;
    int64_t counted = 0;
  };
  void add(Share& share);

  std::vector<HistogramInterval> intervals_;
  std::vector<Share> shares_;
  std::mutex mutex_;
  std::vector<int64_t> above_, bins_;
  std::vector<std::vector<uint64_t>> only_;  // per delta or value, if its bins hold several keys
};

}  // namespace warpmerge
