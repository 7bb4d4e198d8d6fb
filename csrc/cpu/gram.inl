// The sums of `Gram` over the blocks of one tile (gram.h).
//
// Each norm and each pair has 256 lanes of float64. A stage is widened once for all of them. Lanes of float64 cost more
// than lanes of float32 would, but small angles need them (docs/decisions.md, "Numbers"). Elements beyond the end of
// the tensor are 0 and add nothing.

// Adds x^2 to the lanes, for all rows of a stage; with `y`, (x - y)^2.
template <class T>
void add_squares_wide(const T* __restrict x, double* __restrict sums) {
  for (int row = 0; row < kStage; row += kLanes)
    for (int l = 0; l < kLanes; ++l) {
      const double v = double(x[row + l]);
      sums[l] = sums[l] + v * v;
    }
}

template <class T>
void add_squares_wide(const T* __restrict x, const T* __restrict y, double* __restrict sums) {
  for (int row = 0; row < kStage; row += kLanes)
    for (int l = 0; l < kLanes; ++l) {
      const double v = double(x[row + l]) - double(y[row + l]);
      sums[l] = sums[l] + v * v;
    }
}

template <class T>
void gram(const Operands& given, int64_t begin, int64_t count, double* blocks, void* scratch, int64_t* nonfinite) {
  const Operands operands = over_finite(given);
  const int models = operands.models;
  const int size = gram_size(models);
  Arena arena(scratch);
  Staged<T> staged(operands, arena);
  double* lanes = arena.take<double>(size_t(size) * kLanes);
  for (int64_t start = 0; start < count; start += kBlock) {
    const int64_t length = count - start < kBlock ? count - start : kBlock;
    for (int j = 0; j < size * kLanes; ++j) lanes[j] = 0.0;
    for (int64_t done = 0; done < length; done += kStage) {
      const int n = int(length - done < kStage ? length - done : kStage);
      staged.load(operands, nullptr, begin + start + done, n, nonfinite);
      for (int k = 0; k < models; ++k)
        for (int j = n; j < kStage; ++j) staged.d[k][j] = T(0);
      double* sums = lanes;
      for (int k = 0; k < models; ++k, sums += kLanes) add_squares_wide(staged.d[k], sums);
      for (int i = 0; i < models; ++i)
        for (int k = i + 1; k < models; ++k, sums += kLanes) add_squares_wide(staged.d[i], staged.d[k], sums);
    }
    double* block = blocks + start / kBlock * size;
    for (int s = 0; s < size; ++s) block[s] = sum_lanes(lanes + size_t(s) * kLanes);
  }
}
