// Packs of results, rounded once and written.
#pragma once

#include "packs.h"

namespace warpmerge {

// A whole pack at an aligned address, in words.
template <class D>
WM_DEVICE void store_words(char* data, const float (&y)[kPack]) {
  Packed<D, kPack> packed;
  packed.clear();
  WM_UNROLL
  for (int e = 0; e < kPack; ++e) packed.set(e, bit_cast<typename Packed<D, kPack>::Element>(RoundTo<D>::from(y[e])));
  uint4* to = reinterpret_cast<uint4*>(data);
  WM_UNROLL
  for (int w = 0; w < packed.kWords; w += 4)
    __stcs(to + w / 4, make_uint4(packed.words[w], packed.words[w + 1], packed.words[w + 2], packed.words[w + 3]));
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

// A whole pack, of a launch that is aligned and has no float64.
WM_DEVICE void store_packed(const Table& table, const Chunk& chunk, int m, int at, const float (&y)[kPack]) {
  char* data = output_at(table, chunk, m, at);
  switch (table.out) {
    case Dtype::f16:
      return store_words<f16>(data, y);
    case Dtype::bf16:
      return store_words<bf16>(data, y);
    default:
      return store_words<float>(data, y);
  }
}

// The first n results of a pack, whatever the launch.
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
