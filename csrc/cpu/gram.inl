template <class T>
void gram(const Operands& operands, int64_t begin, int64_t count, double* blocks, void* scratch, int64_t* nonfinite) {
  const int models = operands.models;
  const int size = gram_size(models);
  Arena arena(scratch);
  Staged<T> staged(operands, arena);
  T* lanes = arena.take<T>(size_t(size) * kLanes);
  for (int64_t start = 0; start < count; start += kBlock) {
    const int64_t length = count - start < kBlock ? count - start : kBlock;
    for (int j = 0; j < size * kLanes; ++j) lanes[j] = T(0);
    for (int64_t done = 0; done < length; done += kStage) {
      const int n = int(length - done < kStage ? length - done : kStage);
      staged.load(operands, nullptr, begin + start + done, n, nonfinite);
      for (int k = 0; k < models; ++k)
        for (int j = n; j < kStage; ++j) staged.d[k][j] = T(0);
      T* __restrict sums = lanes;
      for (int k = 0; k < models; ++k, sums += kLanes) add_squares(staged.d[k], sums);
      for (int i = 0; i < models; ++i)
        for (int k = i + 1; k < models; ++k, sums += kLanes) {
          const T* __restrict x = staged.d[i];
          const T* __restrict y = staged.d[k];
          for (int row = 0; row < kStage; row += kLanes)
            for (int l = 0; l < kLanes; ++l) {
              const T difference = x[row + l] - y[row + l];
              sums[l] = sums[l] + difference * difference;
            }
        }
    }
    double* block = blocks + start / kBlock * size;
    for (int s = 0; s < size; ++s) block[s] = double(sum_lanes(lanes + size_t(s) * kLanes));
  }
}
