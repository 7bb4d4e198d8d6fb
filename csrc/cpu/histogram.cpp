#include "histogram.h"

#include "../ops/select.h"

namespace warpmerge {

HistogramItem::HistogramItem(const Kernels& kernels, std::shared_ptr<Tensors> tensors, int64_t tile_elements,
                             std::vector<std::pair<uint64_t, uint64_t>> intervals, int threads)
    : TensorItem(kernels, std::move(tensors), tile_elements),
      shares_(size_t(threads)),
      above_(intervals.size()),
      bins_(intervals.size() * kHistogramBins),
      only_(intervals.size()) {
  // No key is above `top`, so an end above `top` means `top`.
  const uint64_t top = tensors_->fp64 ? FloatTraits<double>::magnitude : FloatTraits<float>::magnitude;
  for (const auto& [low, high] : intervals)
    intervals_.push_back({std::min(low, top), std::min(high, top), covering_shift(low, high, kHistogramBins)});
  for (size_t k = 0; k < intervals_.size(); ++k)
    if (intervals_[k].shift) only_[k].resize(kHistogramBins);
}

std::vector<int> HistogramItem::shifts() const {
  std::vector<int> result;
  for (const HistogramInterval& interval : intervals_) result.push_back(interval.shift);
  return result;
}

void HistogramItem::range(int64_t, const Operands& operands, int64_t begin, int64_t count, Worker& worker,
                          int64_t* nonfinite) {
  const size_t values = intervals_.size();
  Share& share = shares_.at(size_t(worker.index));
  if (share.bins.empty()) {
    share.bins.resize(values * kHistogramBins), share.above.resize(values), share.only.resize(values);
    for (size_t k = 0; k < values; ++k) share.only[k].resize(only_[k].size());
  }
  std::vector<uint32_t*> bins(values);
  std::vector<uint64_t*> only(values);
  for (size_t k = 0; k < values; ++k) {
    bins[k] = share.bins.data() + k * kHistogramBins;
    only[k] = only_[k].empty() ? nullptr : share.only[k].data();
  }
  if (tensors_->fp64)
    set<double>().histogram(operands, intervals_.data(), begin, count, bins.data(), only.data(), share.above.data(),
                            scratch(worker), nonfinite);
  else
    set<float>().histogram(operands, intervals_.data(), begin, count, bins.data(), only.data(), share.above.data(),
                           scratch(worker), nonfinite);
  share.counted += count;
  if (share.counted >> 31) add(share);  // before a counter of 32 bits can overflow
}

void HistogramItem::add(Share& share) {
  if (share.bins.empty()) return;
  std::lock_guard<std::mutex> lock(mutex_);
  for (size_t k = 0; k < intervals_.size(); ++k) {
    above_[k] += share.above[k];
    const uint32_t* from = share.bins.data() + k * kHistogramBins;
    int64_t* to = bins_.data() + k * kHistogramBins;
    for (size_t b = 0; b < only_[k].size(); ++b)
      if (from[b]) only_[k][b] = note_key(only_[k][b], uint64_t(to[b]), share.only[k][b]);
    for (int b = 0; b < kHistogramBins; ++b) to[b] += from[b];
  }
  share = Share();
}

void HistogramItem::finish(Worker&) {
  for (Share& share : shares_) add(share);
}

}  // namespace warpmerge
