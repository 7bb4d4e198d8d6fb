// Counting for HistogramItem (histogram.h), in two steps: keys within the interval are collected, then binned.
//
// An interval that comes from a sample holds few keys. The first step is vectorised (select.inl) and passes over the
// other keys, so the scalar second step has little to do. An interval that holds most keys pays for both steps.

template <class T>
void count_keys(const T* d, int count, const HistogramInterval& interval, Bits<T>* between, uint32_t* bins,
                uint64_t* only, int64_t& above) {
  const Bits<T> low = Bits<T>(interval.low), high = Bits<T>(interval.high);
  const int bits = 8 * int(sizeof(T)), shift = interval.shift < bits ? interval.shift : bits - 1;
  const int inside = collect_between(d, count, low, high, between, above);
  for (int j = 0; j < inside; ++j) {
    const Bits<T> place = (between[j] - low) >> shift;
    if (only) only[place] = note_key(only[place], bins[place], between[j]);
    ++bins[place];
  }
}

template <class T>
void histogram(const Operands& operands, const HistogramInterval* intervals, int64_t begin, int64_t count,
               uint32_t* const* bins, uint64_t* const* only, int64_t* above, void* scratch, int64_t* nonfinite) {
  Arena arena(scratch);
  Measured<T> measured(operands, arena);
  Bits<T>* between = arena.take<Bits<T>>(kStage + 64);
  for (int64_t done = 0; done < count; done += kStage) {
    const int n = int(count - done < kStage ? count - done : kStage);
    measured.load(operands, begin + done, n, nonfinite);
    for (int k = 0; k < operands.values(); ++k)
      count_keys(measured.d[k], n, intervals[k], between, bins[k], only[k], above[k]);
  }
}
