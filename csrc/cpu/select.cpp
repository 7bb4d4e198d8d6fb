#include "select.h"

#include <algorithm>

#include "../ops/digest.h"
#include "../ops/select.h"
#include "bracket.h"

namespace warpmerge {
namespace {

// Up to this many elements, the first task computes all keys and settles the tensor, without a sample or a sweep.
constexpr int64_t kSmall = 1 << 17;

template <class T>
class SelectItem final : public SelectItemBase {
  using Key = Bits<T>;

 public:
  SelectItem(const Kernels& kernels, std::shared_ptr<Tensors> tensors, int64_t tile_elements, std::vector<int64_t> keep,
             bool keep_all_ties, int64_t sample, int64_t capacity)
      : SelectItemBase(kernels, tensors, whole_blocks(*tensors, tile_elements)),
        keep_(std::move(keep)),
        keep_all_ties_(keep_all_ties),
        forced_(sample != 0),
        sample_(sample ? sample : default_sample(tensors_->count)),
        capacity_(capacity ? capacity : std::max<int64_t>(1 << 16, tensors_->count / 8)),
        models_(tensors_->values()),
        states_(models_),
        result_(models_),
        intervals_(models_),
        active_(new bool[models_]) {
    for (int k = 0; k < models_; ++k) active_[k] = tensors_->count > 0 && keep_[k] > 0;
  }

  bool prepares() const override { return true; }

  void prepare(Worker& worker) override {
    ++sweeps_;
    const size_t tiles = size_t(this->tiles());
    if (sweeps_ == 1 && whole_at_once()) return settle_small(worker);
    if (sweeps_ == 1) bracket(worker);
    for (int k = 0; k < models_; ++k) {
      if (!active_[k]) continue;
      State& state = states_[k];
      state.counts.assign(tiles, {});
      state.inside.clear();
      state.segments.assign(tiles, {});
      state.overflow = false;
      if (intervals_[k].histogram) state.bins.assign(kSelectBins, 0);
    }
  }

  void finish(Worker& worker) override {
    for (int k = 0; k < models_; ++k)
      if (active_[k]) conclude(k, worker);
  }

  bool done() const override {
    return std::none_of(active_.get(), active_.get() + models_, [](bool a) { return a; });
  }
  const std::vector<Selection>& result() const override { return result_; }
  int sweeps() const override { return sweeps_; }

 protected:
  bool idle() const override { return done(); }
  void range(int64_t index, const Operands& operands, int64_t begin, int64_t count, Worker& worker,
             int64_t* nonfinite) override {
    // Scratch: the kernel's own, then per model a buffer for one block's keys or the histogram of the tile.
    const size_t own = (this->scratch_size() + 63) / 64 * 64;
    const size_t each = std::max((kBlock + 64) * sizeof(Key), kSelectBins * sizeof(int64_t));
    char* memory = static_cast<char*>(worker.scratch(own + each * models_));
    std::vector<Key*> inside(models_);
    std::vector<int64_t*> bins(models_);
    std::vector<SelectCounts> totals(models_), counts(models_);
    std::vector<std::vector<Key>> collected(models_);
    for (int k = 0; k < models_; ++k) {
      inside[k] = reinterpret_cast<Key*>(memory + own + each * k);
      bins[k] = reinterpret_cast<int64_t*>(memory + own + each * k);
      if (intervals_[k].histogram) std::fill_n(bins[k], kSelectBins, 0);
    }
    for (int64_t done = 0; done < count; done += kBlock) {
      this->template set<T>().select(operands, intervals_.data(), active_.get(), begin + done,
                                     std::min<int64_t>(kBlock, count - done), counts.data(), inside.data(), bins.data(),
                                     memory, nonfinite);
      for (int k = 0; k < models_; ++k) {
        totals[k].above += counts[k].above;
        totals[k].at_high += counts[k].at_high;
        totals[k].at_low += counts[k].at_low;
        totals[k].inside += counts[k].inside;
        if (counts[k].inside) collected[k].insert(collected[k].end(), inside[k], inside[k] + counts[k].inside);
      }
    }
    if (sweeps_ > 1) std::fill_n(nonfinite, tensors_->models() + 1, 0);  // counted by the first sweep
    std::lock_guard<std::mutex> lock(mutex_);
    for (int k = 0; k < models_; ++k) {
      if (!active_[k]) continue;
      State& state = states_[k];
      state.counts[index] = totals[k];
      if (intervals_[k].histogram)
        for (int b = 0; b < kSelectBins; ++b) state.bins[b] += bins[k][b];
      if (state.overflow || int64_t(state.inside.size() + collected[k].size()) > capacity_) {
        state.overflow = true;
        state.inside.clear();
        continue;
      }
      state.segments[index] = {state.inside.size(), state.inside.size() + collected[k].size()};
      state.inside.insert(state.inside.end(), collected[k].begin(), collected[k].end());
    }
  }

 private:
  struct State {
    std::vector<SelectCounts> counts;                 // per tile
    std::vector<std::pair<size_t, size_t>> segments;  // per tile: where its keys lie in `inside`
    std::vector<Key> inside;
    std::vector<int64_t> bins;
    bool overflow = false;
  };

  using Wanted = std::unique_ptr<bool[]>;

  // The values that are asked for, each once: the argument of `read_keys`.
  Wanted wanted() const {
    Wanted result(new bool[models_]());
    for (int k = 0; k < models_; ++k)
      if (active_[k]) result[tensors_->first_like(k)] = true;
    return result;
  }

  // Puts the keys of the `wanted` values at [begin, begin + count) into `keys`, from place `at` on. The vectors grow as
  // needed. `only`: the one input that these values read; -1: all.
  void read_keys(const Wanted& wanted, int64_t begin, int64_t count, Worker& worker,
                 std::vector<std::vector<Key>>& keys, int64_t at, int only = -1) {
    Loaded loaded(*tensors_, begin, count, worker, 0, only);
    std::vector<Key*> next(models_);
    for (int k = 0; k < models_; ++k) {
      if (!wanted[k]) continue;
      if (keys[k].size() < size_t(at + count)) keys[k].resize(size_t(at + count));
      next[k] = keys[k].data() + at;
    }
    for (int64_t done = 0; done < count; done += kStage) {
      const int n = int(std::min<int64_t>(kStage, count - done));
      this->template set<T>().keys(loaded.operands(), wanted.get(), begin + done, n, next.data(),
                                   this->scratch(worker));
      for (Key*& k : next) k += n;
    }
  }

  bool whole_at_once() const { return tensors_->count <= (forced_ ? kRun : kSmall); }

  // Settles a small tensor from all its keys.
  void settle_small(Worker& worker) {
    const int64_t count = tensors_->count;
    // Kept by the thread: new memory for every tensor would cost more than the selection.
    static thread_local std::vector<std::vector<Key>> all_keys;
    static thread_local KthRounds<T> rounds;
    static thread_local std::vector<Key> spare;
    all_keys.resize(std::max(all_keys.size(), size_t(models_)));
    constexpr int64_t kStep = 1 << 15;
    const Wanted values = wanted();
    for (int64_t at = 0; at < count; at += kStep)
      read_keys(values, at, std::min(kStep, count - at), worker, all_keys, at);
    for (int k = 0; k < models_; ++k) {
      if (!active_[k]) continue;
      active_[k] = false;
      const std::vector<Key>& keys = all_keys[size_t(tensors_->first_like(k))];
      const Kth<T> found = kth_largest(this->template set<T>(), keys.data(), count, keep_[k], rounds);
      Selection& selection = result_[k];
      selection.threshold = found.key;
      selection.above = found.above;
      selection.ties = found.ties;
      int64_t budget = keep_[k] - found.above;
      if (keep_all_ties_ || found.key == 0 || budget == found.ties) continue;
      selection.tie_end = behind_nth(keys.data(), count, found.key, budget, spare);
    }
  }

  // The first intervals, from a sample.
  void bracket(Worker& worker) {
    const int64_t count = tensors_->count;
    std::vector<std::vector<Key>> keys(models_);
    const int64_t runs = std::max<int64_t>(1, sample_ / kRun);
    const int64_t stride = count / runs;
    const Wanted values = wanted();
    for (int64_t r = 0; r < runs; ++r) {
      // The place of a run within its stride: the same in every merge, but in step with no row length.
      const int64_t jitter = int64_t(mix64(uint64_t(r)) % uint64_t(stride - kRun + 1));
      read_keys(values, r * stride + jitter, kRun, worker, keys, r * kRun);
    }
    KthRounds<T> rounds;
    for (int k = 0; k < models_; ++k)
      if (active_[k])
        intervals_[k] = bracket_of<T>(this->template set<T>(), keys[size_t(tensors_->first_like(k))],
                                      double(keep_[k]) / double(count), rounds);
  }

  // Decides after a sweep: the result, or the next interval.
  void conclude(int k, Worker& worker) {
    State& state = states_[k];
    SelectInterval& interval = intervals_[k];
    SelectCounts total;
    for (const SelectCounts& c : state.counts) {
      total.above += c.above, total.at_high += c.at_high, total.at_low += c.at_low, total.inside += c.inside;
    }
    const int64_t rank = keep_[k] - total.above;  // among the keys at or below `high`, 1 is the largest
    if (interval.histogram) return narrow(k, rank);
    const uint64_t low = interval.low, high = interval.high;
    const int64_t in_low = total.at_high + total.inside;
    if (rank <= 0) {
      widen(k, high + 1, FloatTraits<T>::magnitude);
    } else if (rank <= total.at_high) {
      settle(k, high, total.above, worker, [&](size_t tile) { return state.counts[tile].at_high; });
    } else if (rank <= in_low) {
      if (state.overflow) return widen(k, low + 1, high - 1);
      KthRounds<T> rounds;
      const Kth<T> found = kth_largest(this->template set<T>(), state.inside.data(), int64_t(state.inside.size()),
                                       rank - total.at_high, rounds);
      settle(k, found.key, total.above + total.at_high + found.above, worker, [&](size_t tile) {
        const auto segment = state.segments[tile];
        return int64_t(
            std::count(state.inside.begin() + segment.first, state.inside.begin() + segment.second, found.key));
      });
    } else if (low != high && rank <= in_low + total.at_low) {
      settle(k, low, total.above + in_low, worker, [&](size_t tile) { return state.counts[tile].at_low; });
    } else {
      widen(k, 0, low == 0 ? 0 : low - 1);
    }
  }

  void widen(int k, uint64_t low, uint64_t high) { intervals_[k] = {low, high, true, select_shift(low, high)}; }

  // After a histogram sweep: the next interval is the bin that holds the rank. Its keys are collected if they fit, else
  // the bin is cut again.
  void narrow(int k, int64_t rank) {
    const SelectInterval interval = intervals_[k];
    const std::vector<int64_t>& bins = states_[k].bins;
    int bin = kSelectBins - 1;
    while (bin > 0 && rank > bins[bin]) rank -= bins[bin--];
    const uint64_t low = interval.low + (uint64_t(bin) << interval.shift);
    const uint64_t high = std::min<uint64_t>(interval.high, low + ((uint64_t(1) << interval.shift) - 1));
    const bool collect = low == high || bins[bin] <= capacity_;
    intervals_[k] = {low, high, !collect, collect ? 0 : select_shift(low, high)};
  }

  template <class TiesOfTile>
  void settle(int k, uint64_t threshold, int64_t above, Worker& worker, TiesOfTile ties_of_tile) {
    active_[k] = false;
    Selection& selection = result_[k];
    selection.threshold = threshold;
    selection.above = above;
    int64_t budget = keep_[k] - above;
    int64_t ties = 0, before = 0;
    size_t tile = SIZE_MAX;
    for (size_t t = 0; t < states_[k].counts.size(); ++t) {
      const int64_t here = ties_of_tile(t);
      if (tile == SIZE_MAX && ties + here > budget) tile = t, before = ties;
      ties += here;
    }
    selection.ties = ties;
    states_[k] = State();
    // Zeros stay zeros whether they are kept or not.
    if (keep_all_ties_ || threshold == 0 || tile == SIZE_MAX) return;
    selection.tie_end = locate(k, threshold, int64_t(tile) * step_, budget - before, worker);
  }

  // The position after the nth key that equals `threshold`. -1 if there are fewer; then `nth` becomes the number that
  // is missing.
  int64_t behind_nth(const Key* keys, int64_t size, Key threshold, int64_t& nth, std::vector<Key>& spare) const {
    if (spare.size() < kBlock + 64) spare.resize(kBlock + 64);
    for (int64_t at = 0; at < size; at += kBlock) {
      const int64_t count = std::min<int64_t>(kBlock, size - at);
      SelectCounts counts;
      this->template set<T>().collect(keys + at, count, threshold, threshold, spare.data(), &counts);
      if (counts.at_high < nth) {
        nth -= counts.at_high;
        continue;
      }
      for (int64_t j = 0; j < count; ++j)
        if (keys[at + j] == threshold && --nth == 0) return at + j + 1;
    }
    return -1;
  }

  // The flat index after the `nth` tie at or after `begin`.
  int64_t locate(int k, uint64_t threshold, int64_t begin, int64_t nth, Worker& worker) {
    if (nth == 0) return begin;
    std::vector<std::vector<Key>> keys(models_);
    std::vector<Key> spare;
    const Wanted alone(new bool[models_]());
    alone[k] = true;
    for (int64_t at = begin; at < tensors_->count; at += kBlock) {
      const int64_t count = std::min<int64_t>(kBlock, tensors_->count - at);
      read_keys(alone, at, count, worker, keys, 0, tensors_->input_of(k));
      const int64_t found = behind_nth(keys[k].data(), count, Key(threshold), nth, spare);
      if (found >= 0) return at + found;
    }
    return tensors_->count;
  }

  const std::vector<int64_t> keep_;
  const bool keep_all_ties_;
  const bool forced_;  // a sample size was given: sample tensors of any size
  const int64_t sample_, capacity_;
  const int models_;
  std::vector<State> states_;
  std::vector<Selection> result_;
  std::vector<SelectInterval> intervals_;
  std::unique_ptr<bool[]> active_;
  std::mutex mutex_;
  int sweeps_ = 0;
};

}  // namespace

std::shared_ptr<SelectItemBase> make_select_item(const Kernels& kernels, std::shared_ptr<Tensors> tensors,
                                                 int64_t tile_elements, std::vector<int64_t> keep, bool keep_all_ties,
                                                 int64_t sample, int64_t capacity) {
  if (tensors->fp64)
    return std::make_shared<SelectItem<double>>(kernels, std::move(tensors), tile_elements, std::move(keep),
                                                keep_all_ties, sample, capacity);
  return std::make_shared<SelectItem<float>>(kernels, std::move(tensors), tile_elements, std::move(keep), keep_all_ties,
                                             sample, capacity);
}

}  // namespace warpmerge
