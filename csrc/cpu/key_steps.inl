// Bins for a counting pass over magnitude keys, and the sums that make ranks of counts.

constexpr int kMostSteps = 1024;

// Bins of keys above 0, in turn those between two multiples of 1 << shift and those of the multiple alone: differences
// of 16-bit weights have few significant bits, so that most are such multiples, and many are equal. Lowest of all is
// what lies further below the largest key than nearly all do.
template <class T>
struct KeySteps {
  static constexpr int kOctaves = 8;
  int shift = 0, count = 0;
  Bits<T> first = 0, below = 0;  // the least multiple, and the key that stands for those below it

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

// Sums of all entries before, from `start` on, and with the entry itself. `count` is a multiple of 16.
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
