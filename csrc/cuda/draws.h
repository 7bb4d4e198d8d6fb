// The random bits of csrc/ops/philox.h, for a pack that begins anywhere.
//
// One Philox call serves eight elements, beginning at a multiple of eight. A segment that begins between rows need not
// begin there. So a pack may lie within two calls; the second one is made only then. The lanes in front of the pack are
// shifted out in fixed steps, because registers cannot be indexed at run time. Those steps cost instructions; kernels
// whose packs begin with a call use `drawn_bits` (rules.h) instead.
#pragma once

#include "rules.h"

namespace warpmerge {

WM_DEVICE void philox_call(PhiloxKey key, uint64_t call, uint32_t* words) {
  uint32_t c[4] = {uint32_t(call), uint32_t(call >> 32), 0, 0};
  WM_UNROLL
  for (int round = 0; round < kPhiloxRounds; ++round, key = philox_next(key)) philox_round(c[0], c[1], c[2], c[3], key);
  WM_UNROLL
  for (int w = 0; w < 4; ++w) words[w] = c[w];
}

// The 16 bits of each of N elements from `flat` on.
template <int N>
WM_DEVICE void draws(PhiloxKey key, int64_t flat, uint32_t (&bits)[N]) {
  static_assert(N <= kPhiloxLanes, "a pack lies within two calls");
  constexpr int kWords = 8;
  const uint64_t call = uint64_t(flat) / kPhiloxLanes;
  const int skipped = int(flat % kPhiloxLanes);
  uint32_t words[kWords + 1] = {};
  philox_call(key, call, words);
  if (skipped + N > kPhiloxLanes) philox_call(key, call + 1, words + 4);
  // Shift the skipped lanes out, by 2, 1 and 1/2 words: no index depends on a value of run time.
  WM_UNROLL
  for (int step = 2; step > 0; step /= 2) {
    WM_UNROLL
    for (int w = 0; w + step < kWords; ++w) words[w] = skipped / 2 & step ? words[w + step] : words[w];
  }
  WM_UNROLL
  for (int w = 0; w < kWords; ++w) words[w] = skipped & 1 ? words[w] >> 16 | words[w + 1] << 16 : words[w];
  WM_UNROLL
  for (int e = 0; e < N; ++e) bits[e] = words[e / 2] >> (16 * (e % 2)) & 0xffffu;
}

}  // namespace warpmerge
