// The draws of a stage: 16 random bits for each of kStage elements from flat index `begin` on, a multiple of
// kPhiloxLanes. csrc/ops/philox.h defines them.
//
// On x86 a 32-bit word of the state sits in the low half of a 64-bit lane. The widening multiplication reads low halves
// only, so the high halves may hold anything. A round is then two products, two shifts and two three-way exclusive ors;
// no shuffle is needed. In exchange half of each register does no work. Each instruction set has the same few functions
// on its vectors, and `draw` is written once over these. Other processors take a scalar loop.

#if defined(__AVX512F__)
using Wide = __m512i;
static inline Wide fp64(uint64_t x) { return _mm512_set1_epi64(int64_t(x)); }
static inline Wide multiply(Wide a, Wide b) { return _mm512_mul_epu32(a, b); }
static inline Wide high(Wide a) { return _mm512_srli_epi64(a, 32); }
static inline Wide xor3(Wide a, Wide b, Wide c) { return _mm512_ternarylogic_epi64(a, b, c, 0x96); }
static inline Wide add(Wide a, Wide b) { return _mm512_add_epi64(a, b); }
static inline Wide pair(Wide low, Wide upper) { return _mm512_mask_shuffle_epi32(low, 0xaaaa, upper, _MM_PERM_CCAA); }
static inline Wide unpack_low(Wide a, Wide b) { return _mm512_unpacklo_epi64(a, b); }
static inline Wide unpack_high(Wide a, Wide b) { return _mm512_unpackhi_epi64(a, b); }
static inline void store(uint16_t* to, Wide a) { _mm512_storeu_si512(to, a); }
// The order of calls in a vector from which unpacking stores them in their own order.
static inline Wide call_order() { return _mm512_set_epi64(7, 3, 6, 2, 5, 1, 4, 0); }
#define WM_WIDE_PHILOX
#elif defined(__AVX2__)
using Wide = __m256i;
static inline Wide fp64(uint64_t x) { return _mm256_set1_epi64x(int64_t(x)); }
static inline Wide multiply(Wide a, Wide b) { return _mm256_mul_epu32(a, b); }
static inline Wide high(Wide a) { return _mm256_srli_epi64(a, 32); }
static inline Wide xor3(Wide a, Wide b, Wide c) { return _mm256_xor_si256(_mm256_xor_si256(a, b), c); }
static inline Wide add(Wide a, Wide b) { return _mm256_add_epi64(a, b); }
static inline Wide pair(Wide low, Wide upper) { return _mm256_blend_epi32(low, _mm256_slli_epi64(upper, 32), 0xaa); }
static inline Wide unpack_low(Wide a, Wide b) { return _mm256_unpacklo_epi64(a, b); }
static inline Wide unpack_high(Wide a, Wide b) { return _mm256_unpackhi_epi64(a, b); }
static inline void store(uint16_t* to, Wide a) { _mm256_storeu_si256(reinterpret_cast<Wide*>(to), a); }
static inline Wide call_order() { return _mm256_set_epi64x(3, 1, 2, 0); }
#define WM_WIDE_PHILOX
#elif defined(__SSE2__)
using Wide = __m128i;
static inline Wide fp64(uint64_t x) { return _mm_set1_epi64x(int64_t(x)); }
static inline Wide multiply(Wide a, Wide b) { return _mm_mul_epu32(a, b); }
static inline Wide high(Wide a) { return _mm_srli_epi64(a, 32); }
static inline Wide xor3(Wide a, Wide b, Wide c) { return _mm_xor_si128(_mm_xor_si128(a, b), c); }
static inline Wide add(Wide a, Wide b) { return _mm_add_epi64(a, b); }
static inline Wide pair(Wide low, Wide upper) {
  return _mm_or_si128(_mm_and_si128(low, _mm_set1_epi64x(0xffffffff)), _mm_slli_epi64(upper, 32));
}
static inline Wide unpack_low(Wide a, Wide b) { return _mm_unpacklo_epi64(a, b); }
static inline Wide unpack_high(Wide a, Wide b) { return _mm_unpackhi_epi64(a, b); }
static inline void store(uint16_t* to, Wide a) { _mm_storeu_si128(reinterpret_cast<Wide*>(to), a); }
static inline Wide call_order() { return _mm_set_epi64x(1, 0); }
#define WM_WIDE_PHILOX
#endif

#if defined(WM_WIDE_PHILOX)
#undef WM_WIDE_PHILOX

static void draw(uint64_t seed, int64_t begin, uint16_t* lanes) {
  constexpr int kCalls = sizeof(Wide) / sizeof(uint64_t);  // calls in one vector
  constexpr int kChains = 4;                               // independent vectors, to cover the multiplier's latency
  const Wide m0 = fp64(kPhiloxM0), m1 = fp64(kPhiloxM1);
  uint64_t call = uint64_t(begin / kPhiloxLanes);
  for (int done = 0; done < kStage / kPhiloxLanes; done += kCalls * kChains, call += kCalls * kChains) {
    Wide c0[kChains], c1[kChains], c2[kChains], c3[kChains];
    for (int v = 0; v < kChains; ++v) {
      c0[v] = add(fp64(call + uint64_t(v * kCalls)), call_order());
      c1[v] = high(c0[v]);
      c2[v] = c3[v] = fp64(0);
    }
    PhiloxKey key{uint32_t(seed), uint32_t(seed >> 32)};
    WM_UNROLL
    for (int round = 0; round < kPhiloxRounds; ++round, key = philox_next(key)) {
      const Wide k0 = fp64(key.low), k1 = fp64(key.high);
      WM_UNROLL
      for (int v = 0; v < kChains; ++v) {
        const Wide a = multiply(c0[v], m0), b = multiply(c2[v], m1);
        c0[v] = xor3(high(b), c1[v], k0);
        c2[v] = xor3(high(a), c3[v], k1);
        c1[v] = b;
        c3[v] = a;
      }
    }
    for (int v = 0; v < kChains; ++v) {
      uint16_t* out = lanes + (done + v * kCalls) * kPhiloxLanes;
      const Wide first = pair(c0[v], c1[v]), second = pair(c2[v], c3[v]);
      store(out, unpack_low(first, second));
      store(out + sizeof(Wide) / sizeof(uint16_t), unpack_high(first, second));
    }
  }
}
#else

static void draw(uint64_t seed, int64_t begin, uint16_t* __restrict lanes) {
  for (int i = 0; i < kStage / kPhiloxLanes; ++i) {
    const uint64_t call = uint64_t(begin / kPhiloxLanes + i);
    uint32_t c[4] = {uint32_t(call), uint32_t(call >> 32), 0, 0};
    PhiloxKey key{uint32_t(seed), uint32_t(seed >> 32)};
    for (int round = 0; round < kPhiloxRounds; ++round, key = philox_next(key))
      philox_round(c[0], c[1], c[2], c[3], key);
    for (int w = 0; w < 4; ++w) {
      lanes[i * kPhiloxLanes + 2 * w] = uint16_t(c[w]);
      lanes[i * kPhiloxLanes + 2 * w + 1] = uint16_t(c[w] >> 16);
    }
  }
}
#endif
