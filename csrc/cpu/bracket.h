// Where a sample says that the k-th largest key is.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "kth.h"

namespace warpmerge {

constexpr int kRun = 256;  // consecutive elements per sampled place: one read of a file for many keys

// Cost of a sampled key and of a collected one are alike; with a bracket of four standard deviations on either side
// their sum is least at about (2 n)^(2/3).
inline int64_t default_sample(int64_t count) {
  const int64_t best = int64_t(std::pow(2.0 * double(count), 2.0 / 3.0));
  return std::max<int64_t>(4096, best / kRun * kRun);
}

// Above a share of 1/512 the branch of a tail is mispredicted so often that it costs more than it saves: 0.03 to 0.15
// ns per key at 0.1 % to 1 %, against 0.05 ns in the general way.
template <class Key>
Tail tail_of(const std::vector<Key>& sample, Key low, Key high) {
  const auto few = [&](auto&& in) {
    return std::count_if(sample.begin(), sample.end(), in) <= int64_t(sample.size() / 512);
  };
  if (few([=](Key key) { return key >= low; })) return Tail::largest;
  if (few([=](Key key) { return key <= high; })) return Tail::smallest;
  return Tail::none;
}

// An interval that holds the threshold unless the sample is four standard errors off. Neighbours are alike (a row of an
// embedding changed or did not), so the error is taken from how much the runs differ, not from the number of keys.
// `sample`: whole runs. `share`: of all keys, how many are at or above the threshold.
template <class T>
SelectInterval bracket_of(const KernelSet<T>& set, const std::vector<Bits<T>>& sample, double share,
                          KthRounds<T>& rounds) {
  using Key = Bits<T>;
  const int64_t size = int64_t(sample.size());
  const int64_t rank = std::min(size - 1, int64_t(share * double(size)));
  const auto ranked = [&](int64_t at) { return kth_largest(set, sample.data(), size, at + 1, rounds); };
  const Key middle = ranked(rank);
  double squares_above = 0, squares_from = 0, above = 0, from = 0;
  for (int64_t r = 0; r < size; r += kRun) {
    int64_t run_above = 0, run_from = 0;
    for (int64_t j = r; j < r + kRun; ++j) run_above += sample[j] > middle, run_from += sample[j] >= middle;
    above += double(run_above), squares_above += double(run_above) * double(run_above);
    from += double(run_from), squares_from += double(run_from) * double(run_from);
  }
  const double runs = double(size) / kRun;
  const double error = std::sqrt(std::max(squares_above - above * above / runs, squares_from - from * from / runs));
  const int64_t margin = 4 + int64_t(4.0 * error);
  Key low = 0, high = Key(FloatTraits<T>::magnitude);
  if (rank > margin) high = ranked(rank - margin);
  if (rank + margin < size) low = ranked(rank + margin);
  return {low, high, false, 0, tail_of(sample, low, high)};
}

}  // namespace warpmerge
