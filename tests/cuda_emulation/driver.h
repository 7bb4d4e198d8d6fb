// The state behind the emulated runtime API: devices, allocations, streams, and the faults that tests ask for.
#pragma once

#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>

#include "fibers.h"

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInsufficientDriver = 35,
  cudaErrorNoDevice = 100,
  cudaErrorInvalidDevice = 101,
  cudaErrorInvalidResourceHandle = 400,
  cudaErrorNotReady = 600,
  cudaErrorIllegalAddress = 700,
  cudaErrorLaunchFailure = 719,
};

namespace cuda_emulation {

struct Stream {
  int device;
  std::deque<std::function<void()>> work;
  uint64_t submitted = 0, finished = 0;
};

struct Event {
  int device;
  std::shared_ptr<Stream> stream;
  uint64_t position = 0;
};

// What a test can choose.
struct Settings {
  int devices = 1;
  int version = 13000;
  int major = 9, minor = 0;
  size_t memory_limit = size_t(8) << 30;
  int64_t failing_allocations = 0, failing_pinned = 0;
  // Work waits in its stream until the host waits for it, as late as the API allows.
  bool deferred = false;
};

class Driver : public Settings {
 public:
  static constexpr int kMaxDevices = 16;
  static constexpr unsigned char kFresh = 0xA5, kFence = 0x5C;
  static constexpr size_t kFenceBytes = 256;

  static Driver& get() {
    static Driver* driver = new Driver;  // outlives the objects that Python destroys at exit
    return *driver;
  }

  std::recursive_mutex mutex;

  struct Allocation {
    size_t bytes;
    int device;
    unsigned char* base;
  };
  std::map<uintptr_t, Allocation> allocations;
  std::map<uintptr_t, size_t> pinned;
  size_t used[kMaxDevices] = {};
  std::map<Stream*, std::shared_ptr<Stream>> streams;
  std::shared_ptr<Stream> default_streams[kMaxDevices];
  std::set<Event*> events;

  cudaError_t sticky = cudaSuccess;
  std::string sticky_text;

  cudaError_t allocate(void** result, size_t bytes, int device) {
    *result = nullptr;
    if (bytes == 0) return cudaSuccess;
    if (failing_allocations > 0 && failing_allocations--) return cudaErrorMemoryAllocation;
    if (bytes > memory_limit || used[device] > memory_limit - bytes) return cudaErrorMemoryAllocation;
    const size_t whole = (bytes + 2 * kFenceBytes + 255) / 256 * 256;
    auto* base = static_cast<unsigned char*>(std::aligned_alloc(256, whole));
    if (!base) return cudaErrorMemoryAllocation;
    std::memset(base, kFence, kFenceBytes);
    std::memset(base + kFenceBytes, kFresh, bytes);
    std::memset(base + kFenceBytes + bytes, kFence, whole - kFenceBytes - bytes);
    used[device] += bytes;
    *result = base + kFenceBytes;
    allocations[reinterpret_cast<uintptr_t>(*result)] = {bytes, device, base};
    return cudaSuccess;
  }

  cudaError_t release(void* memory) {
    if (!memory) return cudaSuccess;
    drain_all();
    const auto found = allocations.find(reinterpret_cast<uintptr_t>(memory));
    if (found == allocations.end()) return cudaErrorInvalidValue;
    check_fences(found->second);
    used[found->second.device] -= found->second.bytes;
    std::free(found->second.base);
    allocations.erase(found);
    return cudaSuccess;
  }

  // Why [address, address + bytes) is not inside one allocation of the device; empty if it is.
  std::string outside(const void* address, size_t bytes, int device) {
    const auto start = reinterpret_cast<uintptr_t>(address);
    auto found = allocations.upper_bound(start);
    const std::string range = std::to_string(bytes) + " bytes at " + std::to_string(start);
    if (found == allocations.begin()) return range + " are not in device memory";
    const auto& [first, allocation] = *--found;
    if (start - first >= allocation.bytes) return range + " are not in device memory";
    if (bytes > allocation.bytes - (start - first)) return range + " exceed their device allocation";
    if (allocation.device != device) return range + " are memory of device " + std::to_string(allocation.device);
    return "";
  }

  bool touches_device(const void* address, size_t bytes) {
    const auto start = reinterpret_cast<uintptr_t>(address);
    const auto next = allocations.lower_bound(start + bytes);
    return next != allocations.begin() && std::prev(next)->first + std::prev(next)->second.bytes > start;
  }

  std::shared_ptr<Stream> find(Stream* handle, int device) {
    if (!handle) {
      if (!default_streams[device]) default_streams[device] = std::make_shared<Stream>(Stream{device, {}});
      return default_streams[device];
    }
    const auto found = streams.find(handle);
    return found == streams.end() ? nullptr : found->second;
  }

  void submit(Stream& stream, std::function<void()> work) {
    stream.work.push_back(std::move(work));
    ++stream.submitted;
    if (!deferred) drain(stream, stream.submitted);
  }

  void drain(Stream& stream, uint64_t position) {
    while (stream.finished < position && !stream.work.empty()) {
      const auto work = std::move(stream.work.front());
      stream.work.pop_front();
      try {
        work();
      } catch (const std::exception& error) {
        fail(cudaErrorLaunchFailure, error.what());
      }
      ++stream.finished;
    }
  }

  void drain_all() {
    for (auto& [handle, stream] : streams) drain(*stream, stream->submitted);
    for (auto& stream : default_streams)
      if (stream) drain(*stream, stream->submitted);
  }

  // What a synchronising call returns: kernels that wrote past their arrays are found here.
  cudaError_t settle() {
    for (const auto& [address, allocation] : allocations) check_fences(allocation);
    return std::exchange(sticky, cudaSuccess);
  }

  void fail(cudaError_t error, const std::string& text) {
    if (sticky != cudaSuccess) return;
    sticky = error;
    sticky_text = text;
  }

 private:
  void check_fences(const Allocation& allocation) {
    unsigned char* after = allocation.base + kFenceBytes + allocation.bytes;
    for (size_t i = 0; i < kFenceBytes; ++i) {
      if (allocation.base[i] == kFence && after[i] == kFence) continue;
      fail(cudaErrorIllegalAddress, "something was written " + std::string(after[i] != kFence ? "past" : "before") +
                                        " a device allocation of " + std::to_string(allocation.bytes) + " bytes");
      std::memset(allocation.base, kFence, kFenceBytes);
      std::memset(after, kFence, kFenceBytes);
    }
  }
};

}  // namespace cuda_emulation
