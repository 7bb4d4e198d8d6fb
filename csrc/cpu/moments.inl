// moments and gram over the blocks of one tile, in the order of ops/reduce.h.

// Lane sums over the rows of a stage.
template <class T>
void add_magnitudes(const T* __restrict d, const T* __restrict kept, T* __restrict sums, T* __restrict kept_sums) {
  static_assert(kStage == 2 * kLanes, "a stage is two rows");
  for (int l = 0; l < kLanes; ++l) {
    const T first = bit_cast<T>(magnitude_key(d[l])), second = bit_cast<T>(magnitude_key(d[kLanes + l]));
    sums[l] = sums[l] + first + second;
    const T kept_first = bit_cast<T>(magnitude_key(kept[l])),
            kept_second = bit_cast<T>(magnitude_key(kept[kLanes + l]));
    kept_sums[l] = kept_sums[l] + kept_first + kept_second;
  }
}

template <class T>
void add_squares(const T* __restrict d, T* __restrict sums) {
  for (int row = 0; row < kStage; row += kLanes)
    for (int l = 0; l < kLanes; ++l) sums[l] = sums[l] + d[row + l] * d[row + l];
}

template <class T>
int64_t count_nonzero(const T* __restrict d, int count) {
  int total = 0;
  for (int j = 0; j < count; ++j) total += d[j] != T(0);
  return total;
}

template <class T>
void extremes(const T* __restrict d, int count, Moments& block) {
  Ordered<T> low = ordered(d[0]), high = low;
  for (int j = 0; j < count; ++j) {
    const Ordered<T> rank = ordered(d[j]);
    low = rank < low ? rank : low;
    high = rank > high ? rank : high;
  }
  const double least = double(from_ordered<T>(low)), most = double(from_ordered<T>(high));
  block.min = least < block.min ? least : block.min;
  block.max = most > block.max ? most : block.max;
}

template <class T>
void moments(const Operands& given, const Mask* keep, bool only_l1, int64_t begin, int64_t count, Moments* blocks,
             void* scratch, int64_t* nonfinite) {
  const Operands operands = over_finite(given);
  const int models = operands.values();
  Arena arena(scratch);
  Measured<T> measured(operands, arena);
  T* kept = arena.take<T>(kStage);
  T* lanes = arena.take<T>(size_t(models) * 3 * kLanes);
  for (int64_t start = 0; start < count; start += kBlock) {
    const int64_t size = count - start < kBlock ? count - start : kBlock;
    Moments* block = blocks + start / kBlock * models;
    for (int j = 0; j < models * 3 * kLanes; ++j) lanes[j] = T(0);
    for (int k = 0; k < models; ++k) block[k] = Moments{0, 0, 0, INFINITY, -INFINITY, 0, 0};
    for (int64_t done = 0; done < size; done += kStage) {
      const int n = int(size - done < kStage ? size - done : kStage);
      const int64_t at = begin + start + done;
      measured.load(operands, at, n, nonfinite);
      for (int k = 0; k < models; ++k) {
        T* __restrict d = measured.d[k];
        T* sums = lanes + size_t(k) * 3 * kLanes;
        for (int j = n; j < kStage; ++j) d[j] = T(0);
        measured.drop(keep[k], at, kStage, d, kept);
        add_magnitudes(d, kept, sums, sums + kLanes);
        if (only_l1) continue;
        add_squares(d, sums + 2 * kLanes);
        extremes(d, n, block[k]);
        block[k].nonzero += count_nonzero(d, n);
        block[k].kept += count_nonzero(kept, n);
      }
    }
    for (int k = 0; k < models; ++k) {
      T* sums = lanes + size_t(k) * 3 * kLanes;
      block[k].sum_abs = double(sum_lanes(sums));
      block[k].kept_abs = double(sum_lanes(sums + kLanes));
      block[k].sum_sq = double(sum_lanes(sums + 2 * kLanes));
    }
  }
}
