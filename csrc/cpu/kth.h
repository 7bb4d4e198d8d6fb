// The k-th largest of unsorted keys in memory.
//
// A round takes a sample, brackets the wanted key, and keeps the keys strictly inside the bracket. That is one
// vectorised sweep (KernelSet::collect), and it leaves about a quarter of the keys. Keys at the ends of the bracket are
// counted, not kept, so many equal keys do not slow it down. If the sample misleads, one side of the bracket is kept
// instead: the result is always exact. std::nth_element orders the last few keys. It would take longer on all keys
// (docs/decisions.md); in exchange the rounds need memory for the keys that are left.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <vector>

#include "kernels.h"

namespace warpmerge {

// Memory for the keys that are left after a round and after the next one. It grows as needed.
template <class T>
using KthRounds = std::vector<Bits<T>>[2];

// The key, and how many keys are larger than it and equal to it.
template <class T>
struct Kth {
  Bits<T> key;
  int64_t above, ties;
};

// `rank` counts from 1.
template <class T>
Kth<T> kth_largest(const KernelSet<T>& set, const Bits<T>* keys, int64_t count, int64_t rank, KthRounds<T>& rounds) {
  using Key = Bits<T>;
  constexpr int kSample = 128;
  const int64_t asked = rank;  // asked - rank keys are larger than all that are left
  for (int round = 0; count > 4 * kSample; round = 1 - round) {
    Key sample[kSample];
    for (int64_t i = 0; i < kSample; ++i) sample[i] = keys[i * count / kSample];
    const double share = double(rank) / double(count);
    const int at = std::min(kSample - 1, int(share * kSample));
    const int margin = 2 + int(3.0 * std::sqrt(kSample * share * (1.0 - share)));
    const int first = std::max(0, at - margin), last = std::min(kSample - 1, at + margin);
    std::nth_element(sample, sample + first, sample + kSample, std::greater<Key>());
    const Key high = sample[first];
    std::nth_element(sample + first, sample + last, sample + kSample, std::greater<Key>());
    const Key low = sample[last];
    std::vector<Key>& left = rounds[round];
    if (left.size() < size_t(count) + 64) left.resize(size_t(count) + 64);
    SelectCounts counts;
    set.collect(keys, count, low, high, left.data(), &counts);
    const int64_t to_high = counts.above + counts.at_high, to_low = to_high + counts.inside;
    if (rank > counts.above && rank <= to_high) return {high, asked - rank + counts.above, counts.at_high};
    if (rank > to_low && rank <= to_low + counts.at_low) return {low, asked - rank + to_low, counts.at_low};
    if (rank > to_high && rank <= to_low) {
      count = counts.inside;
      rank -= to_high;
    } else if (rank <= counts.above) {  // the sample misled: one side is left, and it has fewer keys
      count = std::copy_if(keys, keys + count, left.data(), [=](Key key) { return key > high; }) - left.data();
    } else {
      count = std::copy_if(keys, keys + count, left.data(), [=](Key key) { return key < low; }) - left.data();
      rank -= to_low + counts.at_low;
    }
    keys = left.data();
  }
  Key last[4 * kSample];
  std::copy_n(keys, count, last);
  std::nth_element(last, last + (rank - 1), last + count, std::greater<Key>());
  const Key key = last[rank - 1];
  return {key, asked - rank + std::count_if(last, last + count, [=](Key other) { return other > key; }),
          std::count(last, last + count, key)};
}

}  // namespace warpmerge
