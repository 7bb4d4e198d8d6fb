// Devices, memory, streams and events: types over the CUDA runtime that own what they name.
//
// Destructors release what they own; a `Stream` may also stand for one of the caller. A failure is an exception:
// std::runtime_error with CUDA's text, OutOfMemory, or std::invalid_argument for a device that does not exist or cannot
// be used. Each call first makes its device current for the calling thread, so several threads can drive several
// devices. In exchange each call costs one more call of the runtime. Python sees these types through
// csrc/bind/cuda.cpp; python/warpmerge/backends/gpu/runtime.py uses them.
#pragma once

#include <cuda_runtime.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

namespace warpmerge::cuda {

class OutOfMemory : public std::bad_alloc {
 public:
  explicit OutOfMemory(std::string text) : text_(std::move(text)) {}
  const char* what() const noexcept override { return text_.c_str(); }

 private:
  std::string text_;
};

// Compute capabilities that this build has machine code for, as CMake names them: "90", "90a".
std::vector<std::string> architectures();

// CUDA versions are (major, minor).
std::pair<int, int> runtime_version();

// Devices that the driver shows, usable or not; 0 if there is no driver or one too old.
int device_count();

// Empty if a device can be used, else the reason why none can.
std::string why_not();

class Memory {
 public:
  enum class Where { device, pinned };
  Memory(int device, size_t bytes, Where where);
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  // 0 if the memory was freed or has no bytes.
  uintptr_t address() const { return reinterpret_cast<uintptr_t>(memory_.load()); }
  size_t bytes() const { return memory_.load() ? bytes_ : 0; }
  void free();

 private:
  cudaError_t release() noexcept;

  const int device_;
  const size_t bytes_;
  const Where where_;
  std::atomic<void*> memory_{nullptr};
};

class Event {
 public:
  explicit Event(int device);
  ~Event();
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  cudaEvent_t handle() const { return event_; }
  bool done() const;
  void synchronize() const;

 private:
  const int device_;
  cudaEvent_t event_ = nullptr;
};

// Everything is queued on the stream; only synchronize() waits for it.
class Stream {
 public:
  explicit Stream(int device);                                                   // a new stream
  Stream(int device, cudaStream_t handle) : device_(device), stream_(handle) {}  // the caller's stream
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  int device() const { return device_; }
  cudaStream_t handle() const { return stream_; }
  void copy(uintptr_t to, uintptr_t from, size_t bytes, cudaMemcpyKind kind) const;
  void zero(uintptr_t to, size_t bytes) const;
  std::shared_ptr<Event> record() const;
  void wait(const Event& event) const;
  void synchronize() const;

 private:
  const int device_;
  const bool owned_ = false;
  cudaStream_t stream_ = nullptr;
};

class Device {
 public:
  explicit Device(int index);

  int index() const { return index_; }
  const std::string& name() const { return name_; }
  std::pair<int, int> capability() const { return capability_; }
  int multiprocessors() const { return multiprocessors_; }
  // Bytes: free, total.
  std::pair<size_t, size_t> memory() const;
  void make_current() const;

  int64_t launches() const { return launches_; }
  void count_launches(int64_t launches) { launches_ += launches; }

 private:
  int index_;
  std::string name_;
  std::pair<int, int> capability_;
  int multiprocessors_ = 0;
  std::atomic<int64_t> launches_{0};
};

}  // namespace warpmerge::cuda
