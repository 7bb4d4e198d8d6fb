// Histograms of magnitude keys: how many keys lie above an interval, and how many in each bin of the interval.
//
// This is `Reduce` with kind `histogram` (python/warpmerge/requests.py). The k-th largest magnitude of a whole model
// comes from such histograms (engine/model_select.py). A bin also notes its key while it has seen only one. That often
// spares a read: 16-bit deltas leave wide gaps between keys. Each worker counts in bins of its own and adds them up at
// the end. Counting needs no locks; in exchange each worker has a set of bins.
#pragma once

#include <mutex>

#include "item.h"

namespace warpmerge {

// One interval [low, high], of up to kHistogramBins bins, for each delta or value.
class HistogramItem final : public TensorItem {
 public:
  HistogramItem(const Kernels& kernels, std::shared_ptr<Tensors> tensors, int64_t tile_elements,
                std::vector<std::pair<uint64_t, uint64_t>> intervals, int threads);
  void finish(Worker&) override;
  const std::vector<int64_t>& above() const { return above_; }
  std::vector<int> shifts() const;
  int64_t* bins() { return bins_.data(); }  // one row of kHistogramBins per delta or value
  // Of a delta or value: the one key in each bin that is not empty, or kSeveralKeys. Empty if a bin cannot hold several
  // keys.
  const std::vector<uint64_t>& only(size_t value) const { return only_.at(value); }

 protected:
  void range(int64_t index, const Operands& operands, int64_t begin, int64_t count, Worker& worker,
             int64_t* nonfinite) override;

 private:
  // The counts of one worker. No other worker touches them.
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
  std::vector<std::vector<uint64_t>> only_;  // per delta or value, if its bins can hold several keys
};

}  // namespace warpmerge
