// The one place where kernels are launched, and the few names that differ between a device compiler and a host compiler
// that runs the same kernels on the processor (tests/cuda_emulation).
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

// Launches `kernel`, whose `name` is for error messages, on `grid` blocks of `block` threads. No blocks: no launch.
template <class... Params>
void launch(const char* name, void (*kernel)(Params...), int64_t grid, int block, cudaStream_t stream,
            const std::common_type_t<Params>&... args) {
  if (grid == 0) return;
  if (grid < 0 || grid > INT32_MAX)
    throw std::runtime_error(std::string(name) + ": a grid of " + std::to_string(grid) + " blocks is out of range");
#if defined(__CUDACC__)
  kernel<<<unsigned(grid), unsigned(block), 0, stream>>>(args...);
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) throw std::runtime_error(std::string(name) + ": " + cudaGetErrorString(error));
#else
  emulate(stream, unsigned(grid), unsigned(block), kernel, args...);
#endif
  ++launches;
}

}  // namespace warpmerge
