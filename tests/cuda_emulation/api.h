// The part of the CUDA runtime API that warpmerge uses.
#pragma once

#include <cstdio>

#include "driver.h"

#define CUDART_VERSION 13000

using cudaStream_t = cuda_emulation::Stream*;
using cudaEvent_t = cuda_emulation::Event*;

enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2, cudaMemcpyDeviceToDevice = 3 };
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
};
constexpr unsigned cudaHostAllocPortable = 1, cudaStreamNonBlocking = 1, cudaEventBlockingSync = 1,
                   cudaEventDisableTiming = 2;

struct cudaDeviceProp {
  char name[256];
};

namespace cuda_emulation {

inline thread_local int current_device = 0;
inline thread_local cudaError_t last_error = cudaSuccess;
inline thread_local std::string last_text;

inline cudaError_t result(cudaError_t error, const std::string& text = "") {
  if (error == cudaSuccess) return error;
  last_text = text.empty() && error == Driver::get().sticky ? Driver::get().sticky_text : text;
  return last_error = error;
}

// Every entry point: the driver, locked, and what it says about calls at large.
struct Call {
  Driver& driver = Driver::get();
  std::lock_guard<std::recursive_mutex> lock{driver.mutex};

  cudaError_t usable() const {
    if (driver.version < CUDART_VERSION) return cudaErrorInsufficientDriver;
    if (driver.devices == 0) return cudaErrorNoDevice;
    return current_device < driver.devices ? cudaSuccess : cudaErrorInvalidDevice;
  }
  // The stream's object; null if it is none or belongs to another device than the current one.
  std::shared_ptr<Stream> stream(cudaStream_t handle) const {
    auto found = driver.find(handle, current_device);
    return found && found->device == current_device ? found : nullptr;
  }
  cudaError_t settle() const {
    const cudaError_t error = driver.settle();
    return result(error, driver.sticky_text);
  }
};

inline cudaError_t bad_stream() { return result(cudaErrorInvalidResourceHandle, "not a stream of the current device"); }

}  // namespace cuda_emulation

inline const char* cudaGetErrorString(cudaError_t error) {
  using cuda_emulation::last_text;
  if (error == cuda_emulation::last_error && !last_text.empty()) return last_text.c_str();
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInsufficientDriver:
      return "CUDA driver version is insufficient for CUDA runtime version";
    case cudaErrorNoDevice:
      return "no CUDA-capable device is detected";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    case cudaErrorNotReady:
      return "device not ready";
    default:
      return "invalid argument";
  }
}
inline cudaError_t cudaGetLastError() { return std::exchange(cuda_emulation::last_error, cudaSuccess); }

inline cudaError_t cudaDriverGetVersion(int* version) {
  *version = cuda_emulation::Driver::get().version;
  return cudaSuccess;
}
inline cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
inline cudaError_t cudaGetDeviceCount(int* count) {
  const cuda_emulation::Call call;
  *count = call.driver.version < CUDART_VERSION ? 0 : call.driver.devices;
  const cudaError_t error = call.usable();
  return cuda_emulation::result(error == cudaErrorInvalidDevice ? cudaSuccess : error);
}
inline cudaError_t cudaSetDevice(int device) {
  const cuda_emulation::Call call;
  if (device < 0 || device >= call.driver.devices) return cuda_emulation::result(cudaErrorInvalidDevice);
  cuda_emulation::current_device = device;
  return cuda_emulation::result(call.usable());
}
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  std::snprintf(properties->name, sizeof properties->name, "emulated device %d", device);
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const cuda_emulation::Call call;
  *value = attribute == cudaDevAttrMultiProcessorCount      ? 4
           : attribute == cudaDevAttrComputeCapabilityMajor ? call.driver.major
                                                            : call.driver.minor;
  return cudaSuccess;
}
inline cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  const cuda_emulation::Call call;
  const size_t used = call.driver.used[cuda_emulation::current_device];
  *total = call.driver.memory_limit;
  *free = *total > used ? *total - used : 0;
  return cuda_emulation::result(call.usable());
}

inline cudaError_t cudaMalloc(void** memory, size_t bytes) {
  const cuda_emulation::Call call;
  const cudaError_t error = call.usable();
  return cuda_emulation::result(error ? error : call.driver.allocate(memory, bytes, cuda_emulation::current_device));
}
inline cudaError_t cudaFree(void* memory) {
  const cuda_emulation::Call call;
  return cuda_emulation::result(call.driver.release(memory));
}
inline cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned) {
  const cuda_emulation::Call call;
  auto& driver = call.driver;
  *memory = nullptr;
  if (bytes == 0) return cudaSuccess;
  if (!(driver.failing_pinned > 0 && driver.failing_pinned--))
    *memory = std::aligned_alloc(4096, (bytes + 4095) & ~size_t(4095));
  if (!*memory) return cuda_emulation::result(cudaErrorMemoryAllocation);
  std::memset(*memory, cuda_emulation::Driver::kFresh, bytes);
  driver.pinned[reinterpret_cast<uintptr_t>(*memory)] = bytes;
  return cudaSuccess;
}
inline cudaError_t cudaFreeHost(void* memory) {
  const cuda_emulation::Call call;
  if (!memory) return cudaSuccess;
  call.driver.drain_all();
  if (!call.driver.pinned.erase(reinterpret_cast<uintptr_t>(memory)))
    return cuda_emulation::result(cudaErrorInvalidValue);
  std::free(memory);
  return cudaSuccess;
}

inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t handle) {
  const cuda_emulation::Call call;
  auto& driver = call.driver;
  const auto stream = call.stream(handle);
  if (!stream) return cuda_emulation::bad_stream();
  if (bytes == 0) return cudaSuccess;
  std::string why;
  if (kind != cudaMemcpyDeviceToHost)
    why = driver.outside(to, bytes, stream->device);
  else if (driver.touches_device(to, bytes))
    why = "the destination is device memory";
  if (why.empty() && kind != cudaMemcpyHostToDevice)
    why = driver.outside(from, bytes, stream->device);
  else if (why.empty() && driver.touches_device(from, bytes))
    why = "the source is device memory";
  if (!why.empty()) return cuda_emulation::result(cudaErrorInvalidValue, why);
  driver.submit(*stream, [=] { std::memmove(to, from, bytes); });
  return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t handle) {
  const cuda_emulation::Call call;
  const auto stream = call.stream(handle);
  if (!stream) return cuda_emulation::bad_stream();
  if (bytes == 0) return cudaSuccess;
  const std::string why = call.driver.outside(memory, bytes, stream->device);
  if (!why.empty()) return cuda_emulation::result(cudaErrorInvalidValue, why);
  call.driver.submit(*stream, [=] { std::memset(memory, value, bytes); });
  return cudaSuccess;
}

inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* handle, unsigned) {
  const cuda_emulation::Call call;
  const cudaError_t error = call.usable();
  if (error) return cuda_emulation::result(error);
  auto stream = std::make_shared<cuda_emulation::Stream>();
  stream->device = cuda_emulation::current_device;
  *handle = stream.get();
  call.driver.streams[*handle] = std::move(stream);
  return cudaSuccess;
}
inline cudaError_t cudaStreamDestroy(cudaStream_t handle) {
  const cuda_emulation::Call call;
  const auto found = call.driver.streams.find(handle);
  if (found == call.driver.streams.end()) return cuda_emulation::bad_stream();
  call.driver.drain(*found->second, found->second->submitted);
  call.driver.streams.erase(found);
  return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
  const cuda_emulation::Call call;
  const auto stream = call.driver.find(handle, cuda_emulation::current_device);
  if (!stream) return cuda_emulation::bad_stream();
  call.driver.drain(*stream, stream->submitted);
  return call.settle();
}
inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  const cuda_emulation::Call call;
  const cudaError_t error = call.usable();
  if (error) return cuda_emulation::result(error);
  *event = new cuda_emulation::Event{cuda_emulation::current_device, nullptr};
  call.driver.events.insert(*event);
  return cudaSuccess;
}
inline cudaError_t cudaEventDestroy(cudaEvent_t event) {
  const cuda_emulation::Call call;
  if (!call.driver.events.erase(event)) return cuda_emulation::result(cudaErrorInvalidResourceHandle);
  delete event;
  return cudaSuccess;
}
inline cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t handle) {
  const cuda_emulation::Call call;
  const auto stream = call.stream(handle);
  if (!stream || event->device != stream->device) return cuda_emulation::bad_stream();
  event->stream = stream;
  event->position = stream->submitted;
  return cudaSuccess;
}
inline cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event, unsigned = 0) {
  const cuda_emulation::Call call;
  const auto stream = call.driver.find(handle, cuda_emulation::current_device);
  if (!stream) return cuda_emulation::bad_stream();
  auto* driver = &call.driver;
  if (event->stream)
    driver->submit(*stream,
                   [driver, other = event->stream, position = event->position] { driver->drain(*other, position); });
  return cudaSuccess;
}
inline cudaError_t cudaEventQuery(cudaEvent_t event) {
  const cuda_emulation::Call call;
  if (!event->stream || event->stream->finished >= event->position) return call.settle();
  // Whoever asks often enough sees it happen.
  call.driver.drain(*event->stream, event->stream->finished + 1);
  return cudaErrorNotReady;
}
inline cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  const cuda_emulation::Call call;
  if (event->stream) call.driver.drain(*event->stream, event->position);
  return call.settle();
}

// What kernel<<<grid, block, 0, stream>>>(args...) does. What goes wrong in a kernel that runs at once is thrown.
template <class... P, class... A>
void emulate(cudaStream_t handle, dim3 grid, dim3 block, void (*kernel)(P...), A... args) {
  auto run = [=] {
    auto body = [&] { kernel(static_cast<P>(args)...); };
    cuda_emulation::run_grid(grid, block, body);
  };
  {
    const cuda_emulation::Call call;
    const auto stream = call.stream(handle);
    if (!stream) throw std::runtime_error("kernel launched on something that is not a stream of the current device");
    if (call.driver.deferred) return call.driver.submit(*stream, run);
    call.driver.drain(*stream, stream->submitted);
  }
  run();
}

// The same without a stream: after everything that waits in one.
template <class... P, class... A>
void emulate(dim3 grid, dim3 block, void (*kernel)(P...), A... args) {
  {
    const cuda_emulation::Call call;
    call.driver.drain_all();
  }
  auto body = [&] { kernel(static_cast<P>(args)...); };
  cuda_emulation::run_grid(grid, block, body);
}
