// The k-th largest of unsorted keys: sample, bracket, keep what lies strictly inside, again. Each round is one
// vectorised sweep (KernelSet::collect) that leaves about a quarter.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <vector>

#include "kernels.h"

namespace warpmerge {

// Destroys `keys`; `rank` counts from 1. `spare` is memory that grows to what is needed.
template <class T>
Bits<T> kth_largest(const KernelSet<T>& set, std::vector<Bits<T>>& keys, int64_t rank, std::vector<Bits<T>>& spare) {
  using Key = Bits<T>;
  constexpr int kSample = 128;
  while (keys.size() > 4 * kSample) {
    const int64_t count = int64_t(keys.size());
    Key sample[kSample];
    for (int64_t i = 0; i < kSample; ++i) sample[i] = keys[size_t(i * count / kSample)];
    const double share = double(rank) / double(count);
    const int at = std::min(kSample - 1, int(share * kSample));
    const int margin = 2 + int(3.0 * std::sqrt(kSample * share * (1.0 - share)));
    const int first = std::max(0, at - margin), last = std::min(kSample - 1, at + margin);
    std::nth_element(sample, sample + first, sample + kSample, std::greater<Key>());
    const Key high = sample[first];
    std::nth_element(sample + first, sample + last, sample + kSample, std::greater<Key>());
    const Key low = sample[last];
    if (spare.size() < size_t(count) + 64) spare.resize(size_t(count) + 64);
    SelectCounts counts;
    set.collect(keys.data(), count, low, high, spare.data(), &counts);
    const int64_t to_high = counts.above + counts.at_high, to_low = to_high + counts.inside;
    if (rank > counts.above && rank <= to_high) return high;
    if (rank > to_low && rank <= to_low + counts.at_low) return low;
    if (rank > to_high && rank <= to_low) {
      std::copy(spare.begin(), spare.begin() + counts.inside, keys.begin());
      keys.resize(size_t(counts.inside));
      rank -= to_high;
    } else if (rank <= counts.above) {  // the sample misled: one side of the bracket, which is smaller than all
      keys.erase(std::remove_if(keys.begin(), keys.end(), [=](Key key) { return key <= high; }), keys.end());
    } else {
      keys.erase(std::remove_if(keys.begin(), keys.end(), [=](Key key) { return key >= low; }), keys.end());
      rank -= to_low + counts.at_low;
    }
  }
  std::nth_element(keys.begin(), keys.begin() + (rank - 1), keys.end(), std::greater<Key>());
  return keys[size_t(rank - 1)];
}

}  // namespace warpmerge
