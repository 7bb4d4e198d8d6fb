// The one place where kernels are launched, and the few names that differ between two kinds of compiler.
//
// A device compiler makes the kernels for a GPU. A host compiler makes the same sources for tests, and
// tests/cuda_emulation runs them on the processor. The differences are here and in csrc/ops/common.h, so nothing else
// of a kernel depends on the compiler. In exchange kernels use only what the emulation offers. An error of a launch
// becomes an exception with the kernel's name.
#pragma once

#include <cuda_runtime.h>

#include <atomic>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>

#define WM_DEVICE static __device__ __forceinline__
#define WM_METHOD __device__ __forceinline__
// WM_PARAM: a kernel's by-value argument whose address may be taken without a copy to local memory.
#if defined(__CUDACC__)
#define WM_ROLLED _Pragma("unroll 1")
#define WM_PARAM const __grid_constant__
#else
#define WM_ROLLED
#define WM_PARAM const
#endif

namespace warpmerge {

// Kernels launched by this module so far.
inline std::atomic<int64_t> launches{0};

// Shared memory of a size that `launch_with` is told, beside what a kernel declares. Starts at a multiple of 16 bytes.
#if defined(__CUDACC__)
WM_DEVICE char* dynamic_shared() {
  extern __shared__ uint4 warpmerge_shared[];
  return reinterpret_cast<char*>(warpmerge_shared);
}
#else
inline char* dynamic_shared() {
  alignas(16) static char memory[227 << 10];
  return memory;
}
#endif

// Launches `kernel` on `grid` blocks of `block` threads, with `shared` bytes of dynamic shared memory. `name` is for
// error messages. Does nothing if `grid` is 0.
template <class... Params>
void launch_with(int64_t shared, const char* name, void (*kernel)(Params...), int64_t grid, int block,
                 cudaStream_t stream, const std::common_type_t<Params>&... args) {
  if (grid == 0) return;
  if (grid < 0 || grid > INT32_MAX)
    throw std::runtime_error(std::string(name) + ": a grid of " + std::to_string(grid) + " blocks is out of range");
#if defined(__CUDACC__)
  cudaError_t error = cudaSuccess;
  if (shared > (48 << 10))  // more than every device has
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared));
  if (error == cudaSuccess) {
    kernel<<<unsigned(grid), unsigned(block), size_t(shared), stream>>>(args...);
    error = cudaGetLastError();
  }
  if (error != cudaSuccess) throw std::runtime_error(std::string(name) + ": " + cudaGetErrorString(error));
#else
  if (shared > (99 << 10)) throw std::runtime_error(std::string(name) + ": too much shared memory for some devices");
  emulate(stream, unsigned(grid), unsigned(block), kernel, args...);
#endif
  ++launches;
}

template <class... Params>
void launch(const char* name, void (*kernel)(Params...), int64_t grid, int block, cudaStream_t stream,
            const std::common_type_t<Params>&... args) {
  launch_with(0, name, kernel, grid, block, stream, args...);
}

}  // namespace warpmerge
