// Device functions: barriers, warp collectives, atomics, and the arithmetic that CUDA C++ has names for.
#pragma once

#include <cmath>
#include <cstring>
#include <type_traits>

#include "fibers.h"

constexpr int warpSize = 32;

inline void __syncthreads() { cuda_emulation::machine->barrier(false); }
inline int __syncthreads_count(int predicate) { return int(cuda_emulation::machine->barrier(predicate != 0)); }
inline int __syncthreads_or(int predicate) { return __syncthreads_count(predicate) != 0; }
inline int __syncthreads_and(int predicate) { return __syncthreads_count(predicate == 0) == 0; }
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
[[noreturn]] inline void __trap() { cuda_emulation::machine->fail("__trap"); }

namespace cuda_emulation {

// Lane indices of the four shuffles: `source` maps (lane, lowest lane of its group of `width`, highest) to the lane
// read from, or to the lane itself.
template <class T, class Source>
T shuffle(unsigned mask, T value, int width, const char* what, Source source) {
  static_assert(std::is_arithmetic<T>::value && sizeof(T) <= 8, "shuffles move numbers of 4 or 8 bytes");
  uint64_t word = 0;
  std::memcpy(&word, &value, sizeof(T));
  const int lane = int(machine->lane()), low = lane & ~(width - 1);
  const int from = source(lane, low, low + width - 1);
  const Machine::Warp& warp = machine->meet(mask, word, what);
  if (!(mask >> from & 1)) machine->fail(std::string(what) + ": reads from a lane outside the mask");
  std::memcpy(&value, &warp.values[from], sizeof(T));
  return value;
}

inline const char kSyncwarp[] = "__syncwarp", kShfl[] = "__shfl_sync", kShflUp[] = "__shfl_up_sync",
                  kShflDown[] = "__shfl_down_sync", kShflXor[] = "__shfl_xor_sync", kVote[] = "a vote",
                  kReduce[] = "a reduction", kMatch[] = "__match_any_sync";

template <class T, class Combine>
T reduce(unsigned mask, T value, Combine combine) {
  const Machine::Warp& warp = machine->meet(mask, uint64_t(value), kReduce);
  bool first = true;
  T result = 0;
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    if (!(mask >> lane & 1)) continue;
    result = first ? T(warp.values[lane]) : combine(result, T(warp.values[lane]));
    first = false;
  }
  return result;
}

}  // namespace cuda_emulation

inline void __syncwarp(unsigned mask = 0xffffffffu) {
  cuda_emulation::machine->meet(mask, 0, cuda_emulation::kSyncwarp);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  return cuda_emulation::shuffle(mask, value, width, cuda_emulation::kShfl,
                                 [=](int, int low, int) { return low + (source & (width - 1)); });
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  return cuda_emulation::shuffle(mask, value, width, cuda_emulation::kShflUp, [=](int lane, int low, int) {
    return lane - int(delta) < low ? lane : lane - int(delta);
  });
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  return cuda_emulation::shuffle(mask, value, width, cuda_emulation::kShflDown, [=](int lane, int, int high) {
    return lane + int(delta) > high ? lane : lane + int(delta);
  });
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
  return cuda_emulation::shuffle(mask, value, width, cuda_emulation::kShflXor,
                                 [=](int lane, int, int high) { return (lane ^ lanes) > high ? lane : lane ^ lanes; });
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  const unsigned lane = cuda_emulation::machine->lane();
  return cuda_emulation::machine->meet(mask, predicate != 0, cuda_emulation::kVote).bits[lane];
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate == 0) == 0; }

template <class T>
T __reduce_add_sync(unsigned mask, T value) {
  return cuda_emulation::reduce(mask, value, [](T a, T b) { return T(a + b); });
}
template <class T>
T __reduce_min_sync(unsigned mask, T value) {
  return cuda_emulation::reduce(mask, value, [](T a, T b) { return a < b ? a : b; });
}
template <class T>
T __reduce_max_sync(unsigned mask, T value) {
  return cuda_emulation::reduce(mask, value, [](T a, T b) { return a > b ? a : b; });
}
template <class T>
T __reduce_or_sync(unsigned mask, T value) {
  return cuda_emulation::reduce(mask, value, [](T a, T b) { return T(a | b); });
}
template <class T>
T __reduce_and_sync(unsigned mask, T value) {
  return cuda_emulation::reduce(mask, value, [](T a, T b) { return T(a & b); });
}
template <class T>
unsigned __match_any_sync(unsigned mask, T value) {
  uint64_t word = 0;
  std::memcpy(&word, &value, sizeof(T));
  const auto& warp = cuda_emulation::machine->meet(mask, word, cuda_emulation::kMatch);
  unsigned same = 0;
  for (unsigned lane = 0; lane < 32; ++lane)
    if (mask >> lane & 1) same |= unsigned(warp.values[lane] == word) << lane;
  return same;
}

// The overloads that CUDA has; a host thread runs one kernel thread at a time, so nothing has to be atomic.
#define EMULATED_ATOMIC(name, type, expression) \
  inline type name(type* address, type value) { \
    const type old = *address;                  \
    *address = expression;                      \
    return old;                                 \
  }
#define EMULATED_INTEGER_ATOMICS(type)                        \
  EMULATED_ATOMIC(atomicExch, type, value)                    \
  EMULATED_ATOMIC(atomicMin, type, value < old ? value : old) \
  EMULATED_ATOMIC(atomicMax, type, value > old ? value : old) \
  EMULATED_ATOMIC(atomicAnd, type, old& value)                \
  EMULATED_ATOMIC(atomicOr, type, old | value)                \
  EMULATED_ATOMIC(atomicXor, type, old ^ value)
EMULATED_INTEGER_ATOMICS(int)
EMULATED_INTEGER_ATOMICS(unsigned)
EMULATED_INTEGER_ATOMICS(unsigned long long)
EMULATED_ATOMIC(atomicMin, long long, value < old ? value : old)
EMULATED_ATOMIC(atomicMax, long long, value > old ? value : old)
EMULATED_ATOMIC(atomicAdd, int, old + value)
EMULATED_ATOMIC(atomicAdd, unsigned, old + value)
EMULATED_ATOMIC(atomicAdd, unsigned long long, old + value)
EMULATED_ATOMIC(atomicAdd, float, old + value)
EMULATED_ATOMIC(atomicAdd, double, old + value)
EMULATED_ATOMIC(atomicSub, int, old - value)
EMULATED_ATOMIC(atomicSub, unsigned, old - value)

template <class T>
T atomicCAS(T* address, T expected, T value) {
  const T old = *address;
  if (old == expected) *address = value;
  return old;
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)(x)) : 64; }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((uint64_t(a) * b) >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return (unsigned long long)((static_cast<unsigned __int128>(a) * b) >> 64);
}

namespace cuda_emulation {
template <class To, class From>
To cast(From value) {
  static_assert(sizeof(To) == sizeof(From), "casts keep the bits");
  To result;
  std::memcpy(&result, &value, sizeof(To));
  return result;
}
}  // namespace cuda_emulation

inline unsigned __float_as_uint(float x) { return cuda_emulation::cast<unsigned>(x); }
inline int __float_as_int(float x) { return cuda_emulation::cast<int>(x); }
inline float __uint_as_float(unsigned x) { return cuda_emulation::cast<float>(x); }
inline float __int_as_float(int x) { return cuda_emulation::cast<float>(x); }
inline long long __double_as_longlong(double x) { return cuda_emulation::cast<long long>(x); }
inline double __longlong_as_double(long long x) { return cuda_emulation::cast<double>(x); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __dsqrt_rn(double a) { return std::sqrt(a); }

// Loads and stores with a cache hint.
#define EMULATED_LOAD(name)  \
  template <class T>         \
  T name(const T* address) { \
    return *address;         \
  }
#define EMULATED_STORE(name)       \
  template <class T>               \
  void name(T* address, T value) { \
    *address = value;              \
  }
EMULATED_LOAD(__ldg)
EMULATED_LOAD(__ldca)
EMULATED_LOAD(__ldcg)
EMULATED_LOAD(__ldcs)
EMULATED_LOAD(__ldlu)
EMULATED_LOAD(__ldcv)
EMULATED_STORE(__stwb)
EMULATED_STORE(__stcg)
EMULATED_STORE(__stcs)
EMULATED_STORE(__stwt)

template <class T, class U>
constexpr typename std::common_type<T, U>::type min(T a, U b) {
  using C = typename std::common_type<T, U>::type;
  return C(b) < C(a) ? C(b) : C(a);
}
template <class T, class U>
constexpr typename std::common_type<T, U>::type max(T a, U b) {
  using C = typename std::common_type<T, U>::type;
  return C(a) < C(b) ? C(b) : C(a);
}
