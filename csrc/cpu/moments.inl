// moments and gram over the blocks of one tile, in the order of ops/reduce.h.

template <class T>
void moments(const Operands& operands, const Keep* keep, int64_t begin, int64_t count, Moments* blocks, void* scratch,
             int64_t* nonfinite) {
  const int models = operands.models;
  Arena arena(scratch);
  Staged<T> staged(operands, arena);
  uint16_t* drawn = arena.take<uint16_t>(kStage);
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
      staged.load(operands, at, n, nonfinite);
      staged.subtract_base(operands, n);
      for (int k = 0; k < models; ++k) {
        T* __restrict d = staged.x[k];
        for (int j = n; j < kStage; ++j) d[j] = T(0);
        T* __restrict sum_abs = lanes + k * 3 * kLanes;
        T* __restrict sum_sq = sum_abs + kLanes;
        T* __restrict kept_abs = sum_sq + kLanes;
        Ordered<T> low = ordered(d[0]), high = low;
        int nonzero = 0, survivors = 0;
        for (int j = 0; j < n; ++j) {
          const Ordered<T> rank = ordered(d[j]);
          low = rank < low ? rank : low;
          high = rank > high ? rank : high;
          nonzero += d[j] != T(0);
        }
        for (int row = 0; row < kStage; row += kLanes)
          for (int l = 0; l < kLanes; ++l) {
            const T a = bit_cast<T>(magnitude_key(d[row + l]));
            sum_abs[l] = sum_abs[l] + a;
            sum_sq[l] = sum_sq[l] + a * a;
          }
        __builtin_memcpy(kept, d, kStage * sizeof(T));
        drop(keep[k], at, n, kept, drawn);
        for (int row = 0; row < kStage; row += kLanes)
          for (int l = 0; l < kLanes; ++l) kept_abs[l] = kept_abs[l] + bit_cast<T>(magnitude_key(kept[row + l]));
        for (int j = 0; j < n; ++j) survivors += kept[j] != T(0);
        block[k].nonzero += nonzero;
        block[k].kept += survivors;
        const double least = double(from_ordered<T>(low)), most = double(from_ordered<T>(high));
        block[k].min = least < block[k].min ? least : block[k].min;
        block[k].max = most > block[k].max ? most : block[k].max;
      }
    }
    for (int k = 0; k < models; ++k) {
      T* sums = lanes + k * 3 * kLanes;
      block[k].sum_abs = double(sum_lanes(sums));
      block[k].sum_sq = double(sum_lanes(sums + kLanes));
      block[k].kept_abs = double(sum_lanes(sums + 2 * kLanes));
    }
  }
}
