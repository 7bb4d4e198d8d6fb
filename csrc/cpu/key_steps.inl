// Bins of magnitude keys for the counting pass of rank masks (by_rank.inl), and the running sums that make bounds of
// ranks of the counts.
//
// A bin of its own for each key would make the tables too large for the cache. A bin of many keys leaves wide bounds.
// The bins here use the form of the data: differences of 16-bit weights have few significant bits, so many of them are
// multiples of a power of two, and many are equal. Such a multiple has a bin of its own.

constexpr int kMostSteps = 1024;

// Bins of keys above 0. They alternate: the keys between two multiples of 1 << shift, then the next multiple alone. In
// a bin of one key, ranks follow from the columns. The lowest bin takes all keys more than kOctaves octaves below the
// largest one; nearly all keys are above it.
template <class T>
struct KeySteps {
  static constexpr int kOctaves = 8;
  int shift = 0, count = 0;
  Bits<T> first = 0, below = 0;  // the number of the least multiple; the key that stands for all keys below it

  KeySteps() = default;
  KeySteps(Bits<T> low, Bits<T> high, int most) {
    const Bits<T> window = Bits<T>(kOctaves) << ExponentField<T>::fraction;
    const Bits<T> floor = high - low > window ? high - window : low;
    while ((high >> shift) - (floor >> shift) > Bits<T>(most / 2 - 2)) ++shift;
    first = floor >> shift;
    below = first ? (first << shift) - 1 : 0;
    count = 2 * int((high >> shift) - first) + 3;
  }
  uint32_t of(Bits<T> key) const {
    const Bits<T> inside = key > below ? key : below;
    return uint32_t((inside >> shift) + ((inside + ((Bits<T>(1) << shift) - 1)) >> shift) - 2 * first + 1);
  }
  static bool one_key(uint32_t step) { return step & 1; }
};

// Running sums from `start` on: `before` is without the entry's own count, `through` is with it. `count` is a multiple
// of 16.
static inline void running_sums(const uint32_t* __restrict counts, int count, uint32_t start,
                                uint32_t* __restrict before, uint32_t* __restrict through) {
#if defined(__AVX512F__)
  const __m512i zero = _mm512_setzero_si512(), last = _mm512_set1_epi32(15);
  __m512i total = _mm512_set1_epi32(int(start));
  for (int i = 0; i < count; i += 16) {
    const __m512i own = _mm512_loadu_si512(counts + i);
    __m512i sum = _mm512_add_epi32(own, _mm512_alignr_epi32(own, zero, 15));
    sum = _mm512_add_epi32(sum, _mm512_alignr_epi32(sum, zero, 14));
    sum = _mm512_add_epi32(sum, _mm512_alignr_epi32(sum, zero, 12));
    sum = _mm512_add_epi32(sum, _mm512_alignr_epi32(sum, zero, 8));
    sum = _mm512_add_epi32(sum, total);
    _mm512_storeu_si512(through + i, sum);
    _mm512_storeu_si512(before + i, _mm512_sub_epi32(sum, own));
    total = _mm512_permutexvar_epi32(last, sum);
  }
#else
  for (int i = 0; i < count; ++i) {
    before[i] = start;
    through[i] = start = start + counts[i];
  }
#endif
}
