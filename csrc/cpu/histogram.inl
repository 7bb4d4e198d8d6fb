// Bins of an interval of keys. Keys outside go to places beyond the bins, by turns, so that no increment has to wait
// for the one before.

template <class T>
void count_keys(const T* __restrict d, int count, const HistogramInterval& interval, uint32_t* __restrict places,
                uint32_t* bins, uint64_t* only, int64_t& above) {
  const Bits<T> low = Bits<T>(interval.low), high = Bits<T>(interval.high), span = high - low;
  const int bits = 8 * int(sizeof(T)), shift = interval.shift < bits ? interval.shift : bits - 1;
  int over = 0;
  for (int j = 0; j < count; ++j) {
    const Bits<T> key = magnitude_key(d[j]), at = key - low;
    over += key > high;
    places[j] = at <= span ? uint32_t(at >> shift) : uint32_t(kHistogramBins + j % 16);
  }
  above += over;
  for (int j = 0; j < count; ++j) {
    const uint32_t place = places[j];
    if (only && place < kHistogramBins) only[place] = note_key(only[place], bins[place], magnitude_key(d[j]));
    ++bins[place];
  }
}

template <class T>
void histogram(const Operands& operands, const HistogramInterval* intervals, int64_t begin, int64_t count,
               uint32_t* const* bins, uint64_t* const* only, int64_t* above, void* scratch, int64_t* nonfinite) {
  Arena arena(scratch);
  Measured<T> measured(operands, arena);
  uint32_t* places = arena.take<uint32_t>(kStage);
  for (int64_t done = 0; done < count; done += kStage) {
    const int n = int(count - done < kStage ? count - done : kStage);
    measured.load(operands, begin + done, n, nonfinite);
    for (int k = 0; k < operands.values(); ++k)
      count_keys(measured.d[k], n, intervals[k], places, bins[k], only[k], above[k]);
  }
}
