// Packs: N consecutive elements in the registers of a thread.
//
// `Packed` holds elements of one storage type, as words. It loads 8 or 16 bytes at a time from aligned addresses, and
// widens an element when it is read, so a 16-bit element takes half a register. `Widened` takes any dtype, found at run
// time, and any alignment, and holds elements in the compute type. Kernels are templates over the pack, so each is
// written once; `with_pack` chooses. In exchange such a kernel is compiled five times.
#pragma once

#include "../ops/convert.h"
#include "table.h"

namespace warpmerge {

// Elements of a pack of a combining kernel. They are the elements of one Philox call, and 16 bytes of a 16-bit type.
constexpr int kPack = 8;

// One input, or the base, from the first element of a chunk on.
struct ChunkSource {
  const char* data;
  Dtype dtype;
  bool aligned;
};

WM_FN ChunkSource input_of(const Table& table, const Chunk& chunk, int model) {
  const Dtype dtype = dtype_of(table, model);
  return {address(chunk.segment_row, kSegmentInputs + model) + chunk.begin * itemsize(dtype), dtype, table.aligned};
}

WM_FN ChunkSource base_of(const Table& table, const Chunk& chunk) {
  return {address(chunk.segment_row, kSegmentBase) + chunk.begin * itemsize(table.base), table.base, table.aligned};
}

// Elements need no alignment. An aligned element is read or written at once, another one byte by byte.
template <class D>
WM_FN bool has_alignment(const char* data) {
  return reinterpret_cast<uintptr_t>(data) % sizeof(D) == 0;
}

template <class D>
WM_FN D element_at(const char* data) {
  D element;
  if (has_alignment<D>(data)) {
    __builtin_memcpy(&element, __builtin_assume_aligned(data, sizeof(D)), sizeof(D));
  } else {
    char bytes[sizeof(D)];
    WM_UNROLL
    for (int i = 0; i < int(sizeof(D)); ++i) bytes[i] = data[i];
    __builtin_memcpy(&element, bytes, sizeof(D));
  }
  return element;
}

template <class D>
WM_FN void put_element(char* data, D element) {
  if (has_alignment<D>(data)) {
    __builtin_memcpy(__builtin_assume_aligned(data, sizeof(D)), &element, sizeof(D));
  } else {
    char bytes[sizeof(D)];
    __builtin_memcpy(bytes, &element, sizeof(D));
    WM_UNROLL
    for (int i = 0; i < int(sizeof(D)); ++i) data[i] = bytes[i];
  }
}

// Words that are used once need not stay in the cache.
template <bool kOnce>
WM_DEVICE uint4 load_words(const uint4* from) {
  return kOnce ? __ldcs(from) : __ldg(from);
}
template <bool kOnce>
WM_DEVICE uint2 load_words(const uint2* from) {
  return kOnce ? __ldcs(from) : __ldg(from);
}

// `N` elements of storage type S, which is computed in float32.
template <class S, int N>
struct Packed {
  using T = float;
  static constexpr int kSize = N;
  using Element = std::conditional_t<sizeof(S) == 2, uint16_t, uint32_t>;
  static constexpr int kWords = N * sizeof(S) / 4;
  static_assert(kWords % 2 == 0, "a pack is made of loads of 8 or 16 bytes");
  uint32_t words[kWords];

  WM_METHOD void clear() {
    WM_UNROLL
    for (int w = 0; w < kWords; ++w) words[w] = 0;
  }

  // Loads the elements from `at` on, a multiple of N. Elements from the n-th on are 0.
  template <bool kOnce>
  WM_METHOD void load(const ChunkSource& source, int at, int n) {
    const char* data = source.data + at * int(sizeof(S));
    if (n < N) {
      clear();
      WM_UNROLL
      for (int e = 0; e < N; ++e)
        if (e < n) set(e, element_at<Element>(data + e * int(sizeof(S))));
    } else if (kWords == 2) {
      const uint2 v = load_words<kOnce>(reinterpret_cast<const uint2*>(data));
      words[0] = v.x, words[1] = v.y;
    } else {
      WM_UNROLL
      for (int w = 0; w + 3 < kWords; w += 4) {
        const uint4 v = load_words<kOnce>(reinterpret_cast<const uint4*>(data) + w / 4);
        words[w] = v.x, words[w + 1] = v.y, words[w + 2] = v.z, words[w + 3] = v.w;
      }
    }
  }

  // Sets an element that is 0 so far.
  WM_METHOD void set(int e, Element bits) { words[e * int(sizeof(S)) / 4] |= uint32_t(bits) << shift(e); }

  WM_METHOD float get(int e) const { return widen(bit_cast<S>(Element(words[e * int(sizeof(S)) / 4] >> shift(e)))); }

 private:
  WM_METHOD static constexpr int shift(int e) { return sizeof(S) == 2 ? 16 * (e % 2) : 0; }
};

// `N` elements of any storage type and alignment, widened to U.
template <class U, int N>
struct Widened {
  using T = U;
  static constexpr int kSize = N;
  U values[N];

  WM_METHOD void clear() {
    WM_UNROLL
    for (int e = 0; e < N; ++e) values[e] = U(0);
  }

  template <bool kOnce>
  WM_METHOD void load(const ChunkSource& source, int at, int n) {
    switch (source.dtype) {
      case Dtype::f16:
        return load_as<f16, kOnce>(source, at, n);
      case Dtype::bf16:
        return load_as<bf16, kOnce>(source, at, n);
      case Dtype::f64:
        WM_UNROLL
        for (int e = 0; e < N; ++e) values[e] = e < n ? U(element_at<double>(source.data + (at + e) * 8)) : U(0);
        return;
      default:
        return load_as<float, kOnce>(source, at, n);
    }
  }

  WM_METHOD U get(int e) const { return values[e]; }

 private:
  template <class S, bool kOnce>
  WM_METHOD void load_as(const ChunkSource& source, int at, int n) {
    if constexpr (N * sizeof(S) >= 8) {
      if (source.aligned && n >= N) {
        Packed<S, N> packed;
        packed.template load<kOnce>(source, at, N);
        WM_UNROLL
        for (int e = 0; e < N; ++e) values[e] = U(packed.get(e));
        return;
      }
    }
    WM_UNROLL
    for (int e = 0; e < N; ++e)
      values[e] = e < n ? U(widen(element_at<S>(source.data + (at + e) * int(sizeof(S))))) : U(0);
  }
};

// Calls `body` with the pack of N elements that suits a launch.
template <int N, class Body>
auto with_pack(const KernelLaunch& work, Body&& body) {
  if (!packed(work)) return work.fp64 ? body(Widened<double, N>{}) : body(Widened<float, N>{});
  switch (work.inputs[0]) {
    case Dtype::f16:
      return body(Packed<f16, N>{});
    case Dtype::bf16:
      return body(Packed<bf16, N>{});
    default:
      return body(Packed<float, N>{});
  }
}

// Adds to a counter of a tensor. `k`: the number of the input; the base has the number `models`, the results the next.
WM_DEVICE void add_nonfinite(const Table& table, const Chunk& chunk, int k, unsigned long long found) {
  if (found) atomicAdd(table.nonfinite + chunk.segment_row[kSegmentTensor] * (table.models + 2) + k, found);
}

// Counts the elements of a pack that are not finite.
template <class Pack>
WM_DEVICE void count_nonfinite(const Table& table, const Chunk& chunk, int k, const Pack& pack) {
  unsigned long long found = 0;
  WM_UNROLL
  for (int e = 0; e < Pack::kSize; ++e) found += !is_finite(pack.get(e));
  add_nonfinite(table, chunk, k, found);
}

// Called in the rare case that a delta is not finite. Counts the elements of input `k`. Those of the base are counted
// with the first input: if the base is not finite, its delta is not finite either.
template <class Pack>
WM_DEVICE void count_nonfinite(const Table& table, const Chunk& chunk, int k, const Pack& x, const Pack& base) {
  if (!table.nonfinite) return;
  count_nonfinite(table, chunk, k, x);
  if (k == 0 && table.has_base) count_nonfinite(table, chunk, table.models, base);
}

}  // namespace warpmerge
