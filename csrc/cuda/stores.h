// Results of a pack: rounded once to the output dtype, and written.
//
// A whole pack of an aligned launch is written in words of 16 bytes. They are marked as used once, so they displace
// little in the cache. All other results are written element by element: the ends of tensors, float64, unaligned
// outputs. `RoundTo` (csrc/ops/convert.h) defines the rounding on both paths. The dtype of the output is chosen at run
// time: one branch for a pack, in exchange for fewer kernels.
#pragma once

#include <math.h>

#include "packs.h"

namespace warpmerge {

// A whole pack at an aligned address, in words. Returns whether all results are finite in the dtype, whose bound is a
// constant here: it takes no register.
template <class D, Dtype kOut>
WM_DEVICE bool store_words(char* data, const float (&y)[kPack]) {
  bool finite = true;
  WM_UNROLL
  for (int e = 0; e < kPack; ++e) finite &= fabsf(y[e]) < bit_cast<float>(overflow_key<float>(kOut));
  Packed<D, kPack> packed;
  packed.clear();
  WM_UNROLL
  for (int e = 0; e < kPack; ++e) packed.set(e, bit_cast<typename Packed<D, kPack>::Element>(RoundTo<D>::from(y[e])));
  uint4* to = reinterpret_cast<uint4*>(data);
  WM_UNROLL
  for (int w = 0; w < packed.kWords; w += 4)
    __stcs(to + w / 4, make_uint4(packed.words[w], packed.words[w + 1], packed.words[w + 2], packed.words[w + 3]));
  return finite;
}

template <class D, class T, int N>
WM_DEVICE void store_elements(char* data, int n, const T (&y)[N]) {
  WM_UNROLL
  for (int e = 0; e < N; ++e)
    if (e < n) put_element(data + e * int(sizeof(D)), RoundTo<D>::from(y[e]));
}

// Where output `m` has the element `at` of the chunk.
WM_FN char* output_at(const Table& table, const Chunk& chunk, int m, int at) {
  return reinterpret_cast<char*>(chunk.segment_row[kSegmentInputs + table.models + m]) +
         (chunk.begin + at) * itemsize(table.out);
}

// A whole pack. The launch must be aligned and have no float64. Returns whether all results are finite.
WM_DEVICE bool store_packed(const Table& table, const Chunk& chunk, int m, int at, const float (&y)[kPack]) {
  char* data = output_at(table, chunk, m, at);
  switch (table.out) {
    case Dtype::f16:
      return store_words<f16, Dtype::f16>(data, y);
    case Dtype::bf16:
      return store_words<bf16, Dtype::bf16>(data, y);
    default:
      return store_words<float, Dtype::f32>(data, y);
  }
}

// The generic path: the first n results of a pack, any dtype, any alignment.
template <class T, int N>
WM_DEVICE void store_any(const Table& table, const Chunk& chunk, int m, int at, int n, const T (&y)[N]) {
  char* data = output_at(table, chunk, m, at);
  switch (table.out) {
    case Dtype::f16:
      return store_elements<f16>(data, n, y);
    case Dtype::bf16:
      return store_elements<bf16>(data, n, y);
    case Dtype::f64:
      return store_elements<double>(data, n, y);
    default:
      return store_elements<float>(data, n, y);
  }
}

}  // namespace warpmerge
