// The common ground of all kernels: storage types, bit casts, magnitude keys and elements that are not finite.
//
// csrc/ops has the mathematics of one element or block. Loops of the CPU compile it once per instruction set, and
// device compilers compile it too, so all of them round alike. It is header-only, allocates nothing and uses no
// standard library. Functions have internal linkage on purpose: else the linker could give the baseline a copy that was
// compiled for AVX-512.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define WM_FN static __host__ __device__ __forceinline__
#else
#define WM_FN static inline __attribute__((always_inline))
#endif

#if defined(__CUDACC__)
#define WM_UNROLL _Pragma("unroll")
#else
#define WM_UNROLL _Pragma("GCC unroll 16")
#endif

namespace warpmerge {

// Storage types of tensor elements. The codes cross the Python boundary (python/warpmerge/dtypes.py).
enum class Dtype : int { f32 = 0, f16 = 1, bf16 = 2, f64 = 3 };

WM_FN int itemsize(Dtype dtype) { return dtype == Dtype::f64 ? 8 : dtype == Dtype::f32 ? 4 : 2; }

// What to do with a delta that is NaN or infinite. `error` counts and computes like `propagate`; the caller raises.
enum class Nonfinite : int { error = 0, propagate = 1, base = 2 };

// The compute type T is float or double; Bits<T> is the unsigned integer of its width.
template <class T>
struct BitsOf;
template <>
struct BitsOf<float> {
  using type = uint32_t;
};
template <>
struct BitsOf<double> {
  using type = uint64_t;
};
template <class T>
using Bits = typename BitsOf<T>::type;

template <class To, class From>
WM_FN To bit_cast(From value) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast needs equal sizes");
  To result;
  __builtin_memcpy(&result, &value, sizeof(To));
  return result;
}

template <class T>
struct FloatTraits;
template <>
struct FloatTraits<float> {
  static constexpr uint32_t magnitude = 0x7fffffffu;
  static constexpr uint32_t infinity = 0x7f800000u;
  static constexpr uint32_t quiet_nan = 0x7fc00000u;
};
template <>
struct FloatTraits<double> {
  static constexpr uint64_t magnitude = 0x7fffffffffffffffull;
  static constexpr uint64_t infinity = 0x7ff0000000000000ull;
  static constexpr uint64_t quiet_nan = 0x7ff8000000000000ull;
};

// Magnitude as an unsigned integer: for floats that are not NaN it orders like |x|.
template <class T>
WM_FN Bits<T> magnitude_key(T x) {
  return bit_cast<Bits<T>>(x) & FloatTraits<T>::magnitude;
}

template <class T>
WM_FN bool is_finite(T x) {
  return magnitude_key(x) < FloatTraits<T>::infinity;
}

// A delta that is not finite becomes 0 (policy `base`) or, if NaN, the canonical quiet NaN, whose bits do not depend on
// the processor that made it.
template <class T>
WM_FN T settle_nonfinite(T delta, Nonfinite policy) {
  if (is_finite(delta)) return delta;
  if (policy == Nonfinite::base) return T(0);
  if (magnitude_key(delta) > FloatTraits<T>::infinity) return bit_cast<T>(FloatTraits<T>::quiet_nan);
  return delta;
}

}  // namespace warpmerge
