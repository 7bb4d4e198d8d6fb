// The keywords and the vector types of CUDA C++.
#pragma once

#include <cstdint>
#include <memory>  // uses an attribute of the name __noinline__

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(n) __attribute__((aligned(n)))
// One block runs at a time in the process.
#define __shared__ static

// Kernels read arrays of other types through them, hence may_alias.
#define EMULATED_VECTOR(name, element)                                                                      \
  struct __attribute__((may_alias, aligned(sizeof(element)))) name##1 { element x; };                       \
  struct __attribute__((may_alias, aligned(2 * sizeof(element)))) name##2 { element x, y; };                \
  struct __attribute__((may_alias)) name##3 { element x, y, z; };                                           \
  struct __attribute__((may_alias, aligned(4 * sizeof(element) > 16 ? 16 : 4 * sizeof(element)))) name##4 { \
    element x, y, z, w;                                                                                     \
  };                                                                                                        \
  inline name##1 make_##name##1(element x) { return {x}; }                                                  \
  inline name##2 make_##name##2(element x, element y) { return {x, y}; }                                    \
  inline name##3 make_##name##3(element x, element y, element z) { return {x, y, z}; }                      \
  inline name##4 make_##name##4(element x, element y, element z, element w) { return {x, y, z, w}; }

EMULATED_VECTOR(char, signed char)
EMULATED_VECTOR(uchar, unsigned char)
EMULATED_VECTOR(short, short)
EMULATED_VECTOR(ushort, unsigned short)
EMULATED_VECTOR(int, int)
EMULATED_VECTOR(uint, unsigned)
EMULATED_VECTOR(long, long)
EMULATED_VECTOR(ulong, unsigned long)
EMULATED_VECTOR(longlong, long long)
EMULATED_VECTOR(ulonglong, unsigned long long)
EMULATED_VECTOR(float, float)
EMULATED_VECTOR(double, double)

struct dim3 {
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  unsigned x, y, z;
};
