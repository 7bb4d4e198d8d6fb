// The calls of the CUDA runtime behind runtime.h, and which devices this build can use.
//
// `check` turns an error into an exception that names the device. CUDA also keeps the last error of each thread. It is
// cleared after a failure, else a later launch would be blamed for it. A device is usable if the build has machine code
// for it, or PTX that its driver can compile. CMake's list of architectures is compiled in, so the answer needs no
// trial launch, and a refusal can name the reason. In exchange the rules of compatibility are repeated here.
#include "runtime.h"

#include <cstdio>
#include <sstream>
#include <stdexcept>

namespace warpmerge::cuda {

namespace {

// CUDA keeps the last error of each thread until somebody asks for it. A later check must not find this one.
void forget_error() noexcept { (void)cudaGetLastError(); }

[[noreturn]] void raise(cudaError_t error, const std::string& what) {
  const std::string text = cudaGetErrorString(error);
  forget_error();
  throw std::runtime_error(what + ": " + text);
}

std::string gpu(int device) { return "GPU " + std::to_string(device); }

void check(cudaError_t error, int device, const char* what) {
  if (error != cudaSuccess) raise(error, gpu(device) + ": " + what);
}

void select(int device) { check(cudaSetDevice(device), device, "cannot be used"); }

std::string human(size_t bytes) {
  const char* unit = "bytes";
  double value = double(bytes);
  for (const char* larger : {"kB", "MB", "GB", "TB"}) {
    if (value < 1000) break;
    value /= 1000;
    unit = larger;
  }
  char text[32];
  std::snprintf(text, sizeof text, value == double(bytes) ? "%.0f %s" : "%.1f %s", value, unit);
  return text;
}

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

std::string capability_text(int capability) {
  return std::to_string(capability / 10) + "." + std::to_string(capability % 10);
}

// An element of CMAKE_CUDA_ARCHITECTURES: "90" (machine code and PTX), "90-real", "90-virtual", "90a-real".
struct Architecture {
  std::string name;
  int capability;
  bool specific;  // runs on this capability only
  bool code, ptx;

  bool runs_on(int device) const {
    if (specific) return device == capability;
    return (code && device / 10 == capability / 10 && device >= capability) || (ptx && device >= capability);
  }
};

std::vector<Architecture> compiled_in() {
  std::vector<Architecture> list;
  std::istringstream text(WARPMERGE_CUDA_ARCHITECTURES);
  for (std::string element; std::getline(text, element, ',');) {
    const size_t dash = element.find('-');
    const std::string name = element.substr(0, dash);
    const std::string kind = dash == std::string::npos ? "" : element.substr(dash + 1);
    list.push_back({name, std::stoi(name), name.find_first_not_of("0123456789") != std::string::npos, kind != "virtual",
                    kind != "real"});
  }
  return list;
}

std::string name_of(int device) {
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, device), device, "cannot be queried");
  return properties.name;
}

// Empty if the device can run this build's kernels, else why not. Every merge of tensors asks this first. A driver
// takes long to tell a device's name, so the name is asked for only if it is shown.
std::string why_not(int device, int capability) {
  const std::vector<Architecture> list = compiled_in();
  int oldest = list.front().capability;
  std::string known;
  for (const Architecture& architecture : list) {
    if (architecture.runs_on(capability)) return "";
    if (architecture.capability < oldest) oldest = architecture.capability;
    known += (known.empty() ? "" : ", ") + capability_text(architecture.capability);
  }
  const std::string subject =
      gpu(device) + " (" + name_of(device) + ", compute capability " + capability_text(capability) + ")";
  if (capability < oldest) return subject + " is older than what this build supports (" + capability_text(oldest) + ")";
  return subject + " is none of those that this build was compiled for (" + known + ")";
}

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, device), device, "cannot be queried");
  return value;
}

int capability_of(int device) {
  return 10 * attribute(cudaDevAttrComputeCapabilityMajor, device) +
         attribute(cudaDevAttrComputeCapabilityMinor, device);
}

// The number of devices, and why it is 0.
std::pair<int, std::string> find_devices() {
  int count = 0, driver = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaSuccess && count > 0) return {count, ""};
  const std::string text = cudaGetErrorString(error);
  forget_error();
  if (error == cudaSuccess || error == cudaErrorNoDevice) return {0, "there is no NVIDIA GPU, or none is visible"};
  if (error == cudaErrorInsufficientDriver) {
    if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) return {0, "no NVIDIA driver is installed"};
    return {0, "the NVIDIA driver (" + version_text(driver) + ") is older than this build's CUDA runtime (" +
                   version_text(CUDART_VERSION) + ")"};
  }
  return {0, "CUDA does not start: " + text};
}

}  // namespace

std::vector<std::string> architectures() {
  std::vector<std::string> names;
  for (const Architecture& architecture : compiled_in())
    if (names.empty() || names.back() != architecture.name) names.push_back(architecture.name);
  return names;
}

std::pair<int, int> runtime_version() { return {CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10}; }

int device_count() { return find_devices().first; }

std::string why_not() {
  const auto [count, reason] = find_devices();
  std::string first = reason;
  for (int device = 0; device < count; ++device) {
    std::string why;
    try {
      why = why_not(device, capability_of(device));
    } catch (const std::exception& error) {
      why = error.what();
    }
    if (why.empty()) return "";
    if (first.empty()) first = why;
  }
  return first;
}

Memory::Memory(int device, size_t bytes, Where where) : device_(device), bytes_(bytes), where_(where) {
  select(device);
  void* memory = nullptr;
  const bool pinned = where == Where::pinned;
  const cudaError_t error = bytes == 0 ? cudaSuccess
                            : pinned   ? cudaHostAlloc(&memory, bytes, cudaHostAllocPortable)
                                       : cudaMalloc(&memory, bytes);
  if (error == cudaErrorMemoryAllocation) {
    forget_error();
    if (pinned) throw OutOfMemory("cannot allocate " + human(bytes) + " of page-locked host memory");
    size_t free = 0, total = 0;
    std::string left;
    if (cudaMemGetInfo(&free, &total) == cudaSuccess) left = " (" + human(free) + " free)";
    throw OutOfMemory(gpu(device) + ": cannot allocate " + human(bytes) + left);
  }
  check(error, device, "allocation");
  memory_ = memory;
}

Memory::~Memory() {
  if (release() != cudaSuccess) forget_error();
}

void Memory::free() { check(release(), device_, "freeing memory"); }

cudaError_t Memory::release() noexcept {
  void* memory = memory_.exchange(nullptr);
  if (!memory) return cudaSuccess;
  const cudaError_t error = cudaSetDevice(device_);
  if (error != cudaSuccess) return error;
  return where_ == Where::pinned ? cudaFreeHost(memory) : cudaFree(memory);
}

Event::Event(int device) : device_(device) {
  check(cudaEventCreateWithFlags(&event_, cudaEventBlockingSync | cudaEventDisableTiming), device, "creating an event");
}

Event::~Event() {
  if (cudaEventDestroy(event_) != cudaSuccess) forget_error();
}

bool Event::done() const {
  select(device_);
  const cudaError_t error = cudaEventQuery(event_);
  if (error != cudaErrorNotReady) check(error, device_, "work before an event");
  if (error == cudaErrorNotReady) forget_error();
  return error == cudaSuccess;
}

void Event::synchronize() const {
  select(device_);
  check(cudaEventSynchronize(event_), device_, "work before an event");
}

Stream::Stream(int device) : device_(device), owned_(true) {
  select(device);
  check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), device, "creating a stream");
}

Stream::~Stream() {
  if (owned_ && cudaStreamDestroy(stream_) != cudaSuccess) forget_error();
}

void Stream::copy(uintptr_t to, uintptr_t from, size_t bytes, cudaMemcpyKind kind) const {
  if (bytes == 0) return;
  select(device_);
  check(cudaMemcpyAsync(reinterpret_cast<void*>(to), reinterpret_cast<const void*>(from), bytes, kind, stream_),
        device_,
        kind == cudaMemcpyHostToDevice   ? "copy to the device"
        : kind == cudaMemcpyDeviceToHost ? "copy from the device"
                                         : "copy on the device");
}

void Stream::zero(uintptr_t to, size_t bytes) const {
  if (bytes == 0) return;
  select(device_);
  check(cudaMemsetAsync(reinterpret_cast<void*>(to), 0, bytes, stream_), device_, "zeroing memory");
}

std::shared_ptr<Event> Stream::record() const {
  select(device_);
  auto event = std::make_shared<Event>(device_);
  check(cudaEventRecord(event->handle(), stream_), device_, "recording an event");
  return event;
}

void Stream::wait(const Event& event) const {
  select(device_);
  check(cudaStreamWaitEvent(stream_, event.handle(), 0), device_, "waiting for an event");
}

void Stream::synchronize() const {
  select(device_);
  check(cudaStreamSynchronize(stream_), device_, "work on a stream");
}

Device::Device(int index) : index_(index) {
  const auto [count, reason] = find_devices();
  if (count == 0) throw std::invalid_argument(reason);
  if (index < 0 || index >= count)
    throw std::invalid_argument("there is no " + gpu(index) + ": " +
                                (count == 1 ? "only GPU 0" : "they are numbered 0 to " + std::to_string(count - 1)));
  const int capability = capability_of(index);
  name_ = name_of(index);
  const std::string why = why_not(index, capability);
  if (!why.empty()) throw std::invalid_argument(why);
  capability_ = {capability / 10, capability % 10};
  multiprocessors_ = attribute(cudaDevAttrMultiProcessorCount, index);
}

std::pair<size_t, size_t> Device::memory() const {
  select(index_);
  size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total), index_, "asking for free memory");
  return {free, total};
}

void Device::make_current() const { select(index_); }

}  // namespace warpmerge::cuda
