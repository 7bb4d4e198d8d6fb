// The sample that opens an exact selection (csrc/cpu/select.h), and the interval of keys that follows from it.
//
// A sample is a set of runs of neighbouring elements, because one read of a file then serves many keys. Order
// statistics of the sample bracket the k-th largest key of the tensor. A wide bracket rarely misses that key, but then
// the sweep collects more keys. The margin is four standard errors on either side. A miss costs further sweeps; the
// result is exact all the same.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "kth.h"

namespace warpmerge {

constexpr int kRun = 256;  // elements of a run

// A sampled key costs about as much as a collected one. With a bracket of four standard deviations on either side, the
// cost of both is least with about (2 n)^(2/3) sampled keys.
inline int64_t default_sample(int64_t count) {
  const int64_t best = int64_t(std::pow(2.0 * double(count), 2.0 / 3.0));
  return std::max<int64_t>(4096, best / kRun * kRun);
}

// If more than 1/512 of the keys are in the tail, the branch on a group is mispredicted so often that it costs more
// than it saves: 0.03 to 0.15 ns per key at 0.1 % to 1 %, against 0.05 ns without the branch.
template <class Key>
Tail tail_of(const std::vector<Key>& sample, Key low, Key high) {
  const auto few = [&](auto&& in) {
    return std::count_if(sample.begin(), sample.end(), in) <= int64_t(sample.size() / 512);
  };
  if (few([=](Key key) { return key >= low; })) return Tail::largest;
  if (few([=](Key key) { return key <= high; })) return Tail::smallest;
  return Tail::none;
}

// An interval that holds the threshold, unless the sample is off by more than four standard errors. Neighbouring
// elements are alike, for example in a row of an embedding. So the error is estimated from the differences between
// runs, not from the number of keys. `sample`: whole runs. `share`: the share of all keys that are at or above the
// threshold.
template <class T>
SelectInterval bracket_of(const KernelSet<T>& set, const std::vector<Bits<T>>& sample, double share,
                          KthRounds<T>& rounds) {
  using Key = Bits<T>;
  const int64_t size = int64_t(sample.size());
  const int64_t rank = std::min(size - 1, int64_t(share * double(size)));
  const auto ranked = [&](int64_t at) { return kth_largest(set, sample.data(), size, at + 1, rounds).key; };
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
