// The sweep of `select` (csrc/cpu/select.h): it classifies keys against an interval, counts those at the two ends, and
// collects those strictly inside.
//
// Three ways have the same results. If hardly any key is near the interval, whole groups of keys are passed over. With
// AVX-512 and float32, the keys from end to end are collected first, and only these are classified. Else each group is
// counted, and its keys are collected only if some are inside. All of them store keys before they know whether they are
// wanted, so that there is no branch. In exchange outputs need room for 64 keys more. A histogram sweep counts bins
// instead.

// Keys of a group. Where hardly any key is near the interval, groups are passed over whole.
constexpr int kTailGroup = 64;

template <class T>
bool any_in_tail(const T* __restrict d, int count, Bits<T> end, bool largest) {
  int hits = 0;
  if (largest)
    for (int j = 0; j < count; ++j) hits |= magnitude_key(d[j]) >= end;
  else
    for (int j = 0; j < count; ++j) hits |= magnitude_key(d[j]) <= end;
  return hits != 0;
}

#if defined(__AVX512F__) && defined(__AVX512VL__)
// Keys are compressed within a register, and the register is stored whole: a masked compressing store to memory is
// microcoded on some processors.
static inline int64_t collect_inside(const float* d, int count, uint32_t low, uint32_t high, uint32_t* out,
                                     SelectCounts& counts) {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  const __m512i vlow = _mm512_set1_epi32(int(low)), vhigh = _mm512_set1_epi32(int(high));
  const __m512i one = _mm512_set1_epi32(1);
  __m512i above = _mm512_setzero_si512(), from_high = above, from_low = above;
  uint32_t* next = out;
  const int whole = count & ~15;
  const __mmask16 tail = __mmask16((1u << (count - whole)) - 1);
  const auto classify = [&](__m512i key, __mmask16 valid) __attribute__((always_inline)) {
    const __mmask16 ge_low = _mm512_mask_cmpge_epu32_mask(valid, key, vlow);
    const __mmask16 ge_high = _mm512_mask_cmpge_epu32_mask(valid, key, vhigh);
    const __mmask16 gt_high = _mm512_mask_cmpgt_epu32_mask(valid, key, vhigh);
    const __mmask16 gt_low = _mm512_mask_cmpgt_epu32_mask(valid, key, vlow);
    from_low = _mm512_mask_add_epi32(from_low, ge_low, from_low, one);
    from_high = _mm512_mask_add_epi32(from_high, ge_high, from_high, one);
    above = _mm512_mask_add_epi32(above, gt_high, above, one);
    const __mmask16 inside = _kandn_mask16(ge_high, gt_low);
    _mm512_storeu_si512(next, _mm512_maskz_compress_epi32(inside, key));
    next += __builtin_popcount(_cvtmask16_u32(inside));
  };
  for (int j = 0; j < whole; j += 16) classify(_mm512_and_si512(_mm512_loadu_si512(d + j), magnitude), 0xffff);
  if (tail) classify(_mm512_and_si512(_mm512_maskz_loadu_epi32(tail, d + whole), magnitude), tail);
  const int64_t inside = next - out;
  const int64_t n_above = _mm512_reduce_add_epi32(above), n_high = _mm512_reduce_add_epi32(from_high);
  const int64_t n_low = _mm512_reduce_add_epi32(from_low);
  counts.above += n_above;
  counts.at_high += n_high - n_above;
  counts.at_low += low == high ? 0 : n_low - n_high - inside;
  counts.inside += inside;
  return inside;
}

static inline int collect_between(const float* d, int count, uint32_t low, uint32_t high, uint32_t* out,
                                  int64_t& above) {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  const __m512i vlow = _mm512_set1_epi32(int(low)), vhigh = _mm512_set1_epi32(int(high));
  const __m512i one = _mm512_set1_epi32(1);
  __m512i up_to_high = _mm512_setzero_si512();
  uint32_t* next = out;
  const auto collect = [&](__m512i key, __mmask16 valid) __attribute__((always_inline)) {
    const __mmask16 le_high = _mm512_mask_cmple_epu32_mask(valid, key, vhigh);
    const __mmask16 between = _mm512_mask_cmpge_epu32_mask(le_high, key, vlow);
    up_to_high = _mm512_mask_add_epi32(up_to_high, le_high, up_to_high, one);
    _mm512_storeu_si512(next, _mm512_maskz_compress_epi32(between, key));
    next += __builtin_popcount(_cvtmask16_u32(between));
  };
  const int whole = count & ~15;
  const __mmask16 rest = __mmask16((1u << (count - whole)) - 1);
  for (int j = 0; j < whole; j += 16) collect(_mm512_and_si512(_mm512_loadu_si512(d + j), magnitude), 0xffff);
  if (rest) collect(_mm512_and_si512(_mm512_maskz_loadu_epi32(rest, d + whole), magnitude), rest);
  above += count - _mm512_reduce_add_epi32(up_to_high);
  return int(next - out);
}

static inline bool any_in_tail(const float* d, int count, uint32_t end, bool largest) {
  if (count != kTailGroup) return any_in_tail<float>(d, count, end, largest);
  static_assert(kTailGroup == 64);
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff), vend = _mm512_set1_epi32(int(end));
  const auto key = [&](int j) { return _mm512_and_si512(_mm512_loadu_si512(d + j), magnitude); };
  const __m512i a = key(0), b = key(16), c = key(32), e = key(48);
  return largest ? _mm512_cmpge_epu32_mask(_mm512_max_epu32(_mm512_max_epu32(a, b), _mm512_max_epu32(c, e)), vend)
                 : _mm512_cmple_epu32_mask(_mm512_min_epu32(_mm512_min_epu32(a, b), _mm512_min_epu32(c, e)), vend);
}
#endif

// Collects the keys in [low, high], in order, and counts those above; `out` has room for 64 more.
template <class T>
int collect_between(const T* __restrict d, int count, Bits<T> low, Bits<T> high, Bits<T>* __restrict out,
                    int64_t& above) {
  const Bits<T> span = high - low;
  int found = 0, over = 0;
  for (int j = 0; j < count; ++j) over += magnitude_key(d[j]) > high;
  for (int j = 0; j < count; ++j) {
    const Bits<T> key = magnitude_key(d[j]);
    out[found] = key;
    found += key - low <= span;
  }
  above += over;
  return found;
}

template <class T>
int64_t collect_inside(const T* __restrict d, int count, Bits<T> low, Bits<T> high, Bits<T>* __restrict out,
                       SelectCounts& counts) {
  constexpr int kGroup = 32;
  int above = 0, from_high = 0, from_low = 0;
  int64_t inside = 0;
  for (int start = 0; start < count; start += kGroup) {
    const int n = count - start < kGroup ? count - start : kGroup;
    const T* __restrict group = d + start;
    int g_above = 0, g_high = 0, g_low = 0, g_past = 0;
    for (int j = 0; j < n; ++j) {
      const Bits<T> key = magnitude_key(group[j]);
      g_above += key > high;
      g_high += key >= high;
      g_low += key >= low;
      g_past += key > low;
    }
    above += g_above, from_high += g_high, from_low += g_low;
    if (g_past > g_high)
      for (int j = 0; j < n; ++j) {
        const Bits<T> key = magnitude_key(group[j]);
        out[inside] = key;
        inside += key > low && key < high;
      }
  }
  counts.above += above;
  counts.at_high += from_high - above;
  counts.at_low += low == high ? 0 : from_low - from_high - inside;
  counts.inside += inside;
  return inside;
}

// Keys are magnitudes: read as floats, they are their own keys.
template <class T>
void collect(const Bits<T>* keys, int64_t count, Bits<T> low, Bits<T> high, Bits<T>* out, SelectCounts* counts) {
  constexpr int kChunk = 1 << 20;
  for (int64_t done = 0; done < count; done += kChunk) {
    const int n = int(count - done < kChunk ? count - done : kChunk);
    out += collect_inside(reinterpret_cast<const T*>(keys + done), n, low, high, out, *counts);
  }
}

// collect_inside for an interval in a tail. A group without a key in the tail is not looked at again: all its keys are
// above the interval, or all are below.
template <class T>
void collect_tail(const T* d, int count, Tail tail, Bits<T> low, Bits<T> high, Bits<T>* out, SelectCounts& counts) {
  const bool largest = tail == Tail::largest;
  for (int start = 0; start < count; start += kTailGroup) {
    const int n = count - start < kTailGroup ? count - start : kTailGroup;
    if (any_in_tail(d + start, n, largest ? low : high, largest))
      out += collect_inside(d + start, n, low, high, out, counts);
    else if (!largest)
      counts.above += n;
  }
}

template <class T>
void count_bins(const T* d, int count, const SelectInterval& interval, SelectCounts& counts, int64_t* bins) {
  for (int j = 0; j < count; ++j) {
    const uint64_t key = magnitude_key(d[j]);
    counts.above += key > interval.high;
    if (key >= interval.low && key <= interval.high) ++bins[(key - interval.low) >> interval.shift];
  }
}

template <class T>
void select(const Operands& operands, const SelectInterval* intervals, const bool* active, int64_t begin, int64_t count,
            SelectCounts* counts, Bits<T>* const* inside, int64_t* const* bins, void* scratch, int64_t* nonfinite) {
  // Where it is vectorised, collecting the keys in [low, high] and classifying only these takes half the time.
#if defined(__AVX512F__) && defined(__AVX512VL__)
  constexpr bool kTwoSteps = sizeof(T) == sizeof(float);
#else
  constexpr bool kTwoSteps = false;
#endif
  Arena arena(scratch);
  Measured<T> measured(operands, arena);
  const int values = operands.values();
  int* between = arena.take<int>(size_t(values));
  for (int k = 0; k < values; ++k) counts[k] = SelectCounts(), between[k] = 0;
  for (int64_t done = 0; done < count; done += kStage) {
    const int n = int(count - done < kStage ? count - done : kStage);
    measured.load(operands, begin + done, n, nonfinite);
    for (int k = 0; k < values; ++k) {
      if (!active[k]) continue;
      const SelectInterval& interval = intervals[k];
      const Bits<T> low = Bits<T>(interval.low), high = Bits<T>(interval.high);
      const T* d = measured.d[k];
      if (interval.histogram)
        count_bins(d, n, interval, counts[k], bins[k]);
      else if (interval.tail != Tail::none)
        collect_tail(d, n, interval.tail, low, high, inside[k] + counts[k].inside, counts[k]);
      else if constexpr (kTwoSteps)
        // Where little has changed, zeros are many. No key is below them, so their number is the rest, and they need
        // not be collected.
        between[k] += collect_between(d, n, low ? low : 1, high, inside[k] + between[k], counts[k].above);
      else
        collect_inside(d, n, low, high, inside[k] + counts[k].inside, counts[k]);
    }
  }
  if constexpr (kTwoSteps)
    for (int k = 0; k < values; ++k) {
      const SelectInterval& interval = intervals[k];
      if (!active[k] || interval.histogram || interval.tail != Tail::none) continue;
      const int64_t zeros = interval.low ? 0 : count - counts[k].above - between[k];
      (interval.high ? counts[k].at_low : counts[k].at_high) += zeros;
      collect<T>(inside[k], between[k], Bits<T>(interval.low), Bits<T>(interval.high), inside[k], counts + k);
    }
}

// Whether every value that is asked for is a delta.
static inline bool only_deltas(const Operands& operands, const bool* active) {
  for (int k = 0; operands.program && k < operands.values(); ++k)
    if (active[k] && operands.program->outputs[k] >= operands.models) return false;
  return true;
}

template <class T>
void keys(const Operands& operands, const bool* active, int64_t begin, int count, Bits<T>* const* out, void* scratch) {
  Arena arena(scratch);
  int64_t* ignored = arena.take<int64_t>(size_t(operands.models) + 1);
  for (int k = 0; k <= operands.models; ++k) ignored[k] = 0;
  if (!only_deltas(operands, active)) {
    Measured<T> measured(operands, arena);
    measured.load(operands, begin, count, ignored);
    for (int m = 0; m < operands.values(); ++m)
      if (active[m]) copy_keys(measured.d[m], count, out[m]);
    return;
  }
  // One delta at a time: most often only one is asked for.
  Operands one = operands;
  one.models = 1;
  Staged<T> staged(one, arena);
  for (int k = 0; k < operands.values(); ++k) {
    if (!active[k]) continue;
    one.inputs = operands.inputs + (operands.program ? operands.program->outputs[k] : k);
    T* d = staged.d[0];
    if (!staged.load(one, nullptr, begin, count, ignored) && operands.program)
      for (int j = 0; j < count; ++j) d[j] = measured(d[j]);
    copy_keys(d, count, out[k]);
  }
}
