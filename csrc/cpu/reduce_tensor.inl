// Sums over the blocks of one tile, in the compute type and in the order of csrc/ops/reduce.h.
//
// A stage is two rows of lanes, so each lane is loaded and stored once for two additions. `kept_sums` is an accelerator
// for the sums of |d| and |mask(d)|. A formula would store both values as arrays and load them again. The kernel takes
// half the time, and it reads the decisions of rank masks that all passes share.

// Lane sums over the rows of a stage.
template <class T>
void add_stage(const T* __restrict d, T* __restrict sums) {
  static_assert(kStage == 2 * kLanes, "a stage is two rows");
  for (int l = 0; l < kLanes; ++l) sums[l] = sums[l] + d[l] + d[kLanes + l];
}

template <class T>
void add_magnitudes(const T* __restrict d, const T* __restrict kept, T* __restrict sums, T* __restrict kept_sums) {
  for (int l = 0; l < kLanes; ++l) {
    const T first = bit_cast<T>(magnitude_key(d[l])), second = bit_cast<T>(magnitude_key(d[kLanes + l]));
    sums[l] = sums[l] + first + second;
    const T kept_first = bit_cast<T>(magnitude_key(kept[l])),
            kept_second = bit_cast<T>(magnitude_key(kept[kLanes + l]));
    kept_sums[l] = kept_sums[l] + kept_first + kept_second;
  }
}

// Calls add(value, its array of a whole stage, first element) for all values of each stage, and close(block) after the
// last stage of a block. Elements beyond the tensor's end are 0.
template <class T, class Add, class Close>
void each_block(const Operands& operands, Measured<T>& measured, int64_t begin, int64_t count, int64_t* nonfinite,
                Add&& add, Close&& close) {
  for (int64_t start = 0; start < count; start += kBlock) {
    const int64_t size = count - start < kBlock ? count - start : kBlock;
    for (int64_t done = 0; done < size; done += kStage) {
      const int n = int(size - done < kStage ? size - done : kStage);
      const int64_t at = begin + start + done;
      measured.load(operands, at, n, nonfinite);
      for (int k = 0; k < operands.values(); ++k) {
        T* __restrict d = measured.d[k];
        for (int j = n; j < kStage; ++j) d[j] = T(0);
        add(k, d, at);
      }
    }
    close(start / kBlock);
  }
}

// Writes the sums of `count` arrays of lanes, and clears the lanes.
template <class T>
void close_lanes(T* lanes, int count, double* sums) {
  for (int k = 0; k < count; ++k) sums[k] = double(sum_lanes(lanes + size_t(k) * kLanes));
  for (int j = 0; j < count * kLanes; ++j) lanes[j] = T(0);
}

template <class T>
void tensor_sums(const Operands& given, int64_t begin, int64_t count, double* blocks, void* scratch,
                 int64_t* nonfinite) {
  const Operands operands = over_finite(given);
  const int values = operands.values();
  Arena arena(scratch);
  Measured<T> measured(operands, arena);
  T* lanes = arena.take<T>(size_t(values) * kLanes);
  for (int j = 0; j < values * kLanes; ++j) lanes[j] = T(0);
  each_block(
      operands, measured, begin, count, nonfinite,
      [&](int k, const T* d, int64_t) { add_stage(d, lanes + size_t(k) * kLanes); },
      [&](int64_t block) { close_lanes(lanes, values, blocks + block * values); });
}

template <class T>
void kept_sums(const Operands& given, const Mask* keep, int64_t begin, int64_t count, double* blocks, void* scratch,
               int64_t* nonfinite) {
  const Operands operands = over_finite(given);
  const int models = operands.models;
  Arena arena(scratch);
  Measured<T> measured(operands, arena);
  T* kept = arena.take<T>(kStage);
  T* lanes = arena.take<T>(size_t(models) * 2 * kLanes);
  for (int j = 0; j < models * 2 * kLanes; ++j) lanes[j] = T(0);
  each_block(
      operands, measured, begin, count, nonfinite,
      [&](int k, const T* d, int64_t at) {
        T* sums = lanes + size_t(k) * 2 * kLanes;
        measured.drop(keep[k], at, kStage, d, kept);
        add_magnitudes(d, kept, sums, sums + kLanes);
      },
      [&](int64_t block) { close_lanes(lanes, models * 2, blocks + block * models * 2); });
}
