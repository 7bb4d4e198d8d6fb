// Runs the blocks of a kernel one after another on the calling thread, and the threads of a block as fibers that switch
// at barriers. A thread that never waits is an ordinary call: its fiber goes on with the next thread. Device code is
// strict about barriers here: every thread of the block (of the mask) has to arrive, also where hardware forgives it.
#pragma once

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "types.h"

inline uint3 threadIdx{0, 0, 0};
inline uint3 blockIdx{0, 0, 0};
inline dim3 blockDim{1, 1, 1};
inline dim3 gridDim{1, 1, 1};

namespace cuda_emulation {

constexpr unsigned kWarp = 32;

// Threads and blocks from the last to the first: results that depend on the order of execution show themselves.
inline std::atomic<bool> reverse_order{false};

struct Fiber {
  static constexpr size_t kGuard = 4096, kStack = 128 << 10;

  Fiber() {
    memory = mmap(nullptr, kGuard + kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    mprotect(memory, kGuard, PROT_NONE);
  }
  ~Fiber() { munmap(memory, kGuard + kStack); }
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  void* memory;
  jmp_buf state;
  ucontext_t context;
  bool entered = false;
};

class Machine {
 public:
  // What the lanes of a warp have put in for the collective that they have just left: one value per lane, and for every
  // lane of the mask the bits of the lanes whose value is not zero. Both stay until the same lanes meet again.
  struct Warp {
    struct Group {
      unsigned mask, arrived;
      const char* what;
    };
    uint64_t incoming[kWarp], values[kWarp];
    unsigned bits[kWarp];
    Group groups[kWarp];
    unsigned size = 0;
  };

  void run(unsigned threads, void (*body)(void*), void* context) {
    body_ = body;
    context_ = context;
    size_ = threads;
    next_ = done_ = arrived_ = 0;
    true_ = true_before_ = 0;
    ready_.clear();
    head_ = 0;
    waiting_.clear();
    fiber_of_.assign(threads, nullptr);
    warps_.resize((threads + kWarp - 1) / kWarp);
    for (Warp& warp : warps_) warp.size = 0;
    if (_setjmp(main_) == 0) dispatch();
    if (!error_ && done_ == size_) return;
    for (auto& fiber : fibers_) fiber->entered = false;
    idle_.clear();
    for (auto& fiber : fibers_) idle_.push_back(fiber.get());
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
    throw std::runtime_error(stuck());
  }

  // Block barrier; returns for how many threads `predicate` held.
  unsigned barrier(bool predicate) {
    true_ += predicate;
    if (++arrived_ == size_) {
      arrived_ = 0;
      true_before_ = true_;
      true_ = 0;
      wake(waiting_);
      waiting_.clear();
    } else {
      waiting_.push_back(current_);
      suspend();
    }
    return true_before_;
  }

  // Meeting of the lanes in `mask`, all of which have to name the same collective.
  const Warp& meet(unsigned mask, uint64_t value, const char* what) {
    const unsigned lane = current_ % kWarp, first = current_ - lane;
    Warp& warp = warps_[current_ / kWarp];
    if (!(mask >> lane & 1)) fail(std::string(what) + ": the calling lane is not in the mask");
    if (size_ - first < kWarp && mask >> (size_ - first)) mask &= (1u << (size_ - first)) - 1;
    warp.incoming[lane] = value;
    Warp::Group* group = nullptr;
    for (unsigned i = 0; i < warp.size; ++i)
      if (warp.groups[i].mask == mask) group = &warp.groups[i];
    if (!group) {
      group = &warp.groups[warp.size++];
      *group = {mask, 0, what};
    }
    if (group->what != what) fail(std::string(what) + ": other lanes of the warp are in " + group->what);
    group->arrived |= 1u << lane;
    if (group->arrived == mask) {
      *group = warp.groups[--warp.size];
      release(warp, mask, first);
    } else {
      suspend();
    }
    return warp;
  }

  unsigned lane() const { return current_ % kWarp; }

  [[noreturn]] void fail(const std::string& message) {
    error_ = std::make_exception_ptr(std::runtime_error(message));
    _longjmp(main_, 1);
  }

 private:
  void release(Warp& warp, unsigned mask, unsigned first) {
    unsigned bits = 0;
    std::vector<unsigned>& others = scratch_;
    others.clear();
    for (unsigned lane = 0; lane < kWarp; ++lane) {
      if (!(mask >> lane & 1)) continue;
      warp.values[lane] = warp.incoming[lane];
      bits |= unsigned(warp.incoming[lane] != 0) << lane;
      if (first + lane != current_) others.push_back(first + lane);
    }
    for (unsigned lane = 0; lane < kWarp; ++lane)
      if (mask >> lane & 1) warp.bits[lane] = bits;
    if (reverse_) std::reverse(others.begin(), others.end());
    wake(others);
  }

  void wake(const std::vector<unsigned>& threads) {
    if (head_ == ready_.size()) {
      ready_.clear();
      head_ = 0;
    }
    ready_.insert(ready_.end(), threads.begin(), threads.end());
  }

  __attribute__((noinline)) void suspend() {
    fiber_of_[current_] = running_;
    if (_setjmp(running_->state) == 0) dispatch();
  }

  // Leaves the running fiber for a thread that may go on, else for one that has not begun, else for run().
  [[noreturn]] __attribute__((noinline)) void dispatch() {
    if (head_ < ready_.size()) {
      current_ = ready_[head_++];
      threadIdx.x = current_;
      running_ = fiber_of_[current_];
      _longjmp(running_->state, 1);
    }
    if (next_ == size_) _longjmp(main_, 1);
    if (idle_.empty()) {
      fibers_.push_back(std::make_unique<Fiber>());
      idle_.push_back(fibers_.back().get());
    }
    running_ = idle_.back();
    idle_.pop_back();
    if (running_->entered) _longjmp(running_->state, 1);
    running_->entered = true;
    getcontext(&running_->context);
    running_->context.uc_stack.ss_sp = static_cast<char*>(running_->memory) + Fiber::kGuard;
    running_->context.uc_stack.ss_size = Fiber::kStack;
    running_->context.uc_link = nullptr;
    entering_ = this;
    makecontext(&running_->context, reinterpret_cast<void (*)()>(&Machine::enter), 0);
    setcontext(&running_->context);
    std::terminate();
  }

  static void enter() { entering_->work(); }

  [[noreturn]] void work() {
    for (;;) {
      while (next_ < size_ && head_ == ready_.size()) begin_next();
      idle_.push_back(running_);
      if (_setjmp(running_->state) == 0) dispatch();
    }
  }

  void begin_next() {
    current_ = reverse_ ? size_ - 1 - next_ : next_;
    ++next_;
    threadIdx.x = current_;
    try {
      body_(context_);
    } catch (...) {
      error_ = std::current_exception();
    }
    if (error_) _longjmp(main_, 1);
    ++done_;
  }

  std::string stuck() const {
    std::string text = "divergent barrier: of " + std::to_string(size_) + " threads of block " +
                       std::to_string(blockIdx.x) + ", " + std::to_string(done_) + " have ended, " +
                       std::to_string(arrived_) + " wait in __syncthreads";
    for (size_t i = 0; i < warps_.size(); ++i)
      for (unsigned j = 0; j < warps_[i].size; ++j)
        text += ", " + std::to_string(__builtin_popcount(warps_[i].groups[j].arrived)) + " of warp " +
                std::to_string(i) + " in " + warps_[i].groups[j].what;
    return text;
  }

  inline static thread_local Machine* entering_ = nullptr;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Fiber*> idle_, fiber_of_;
  std::vector<unsigned> ready_, waiting_, scratch_;
  std::vector<Warp> warps_;
  std::exception_ptr error_;
  Fiber* running_ = nullptr;
  void (*body_)(void*) = nullptr;
  void* context_ = nullptr;
  size_t head_ = 0;
  unsigned size_ = 0, next_ = 0, done_ = 0, arrived_ = 0, current_ = 0, true_ = 0, true_before_ = 0;
  jmp_buf main_;

 public:
  bool reverse_ = false;
};

// The machine of the kernel that is running. One kernel runs at a time, so that the built-in variables and shared
// memory are plain ones; a machine serves one host thread, because fibers stay on theirs.
inline Machine* machine = nullptr;
inline std::mutex running;

inline Machine& own_machine() {
  static thread_local Machine own;
  return own;
}

template <class Body>
void run_grid(dim3 grid, dim3 block, Body& body) {
  if (grid.x < 1 || grid.x > 0x7fffffffu || block.x < 1 || block.x > 1024)
    throw std::runtime_error("invalid configuration argument: " + std::to_string(grid.x) + " blocks of " +
                             std::to_string(block.x) + " threads");
  if (grid.y * grid.z * block.y * block.z != 1) throw std::runtime_error("only grids of one dimension are emulated");
  const std::lock_guard<std::mutex> lock(running);
  machine = &own_machine();
  const bool reverse = machine->reverse_ = reverse_order;
  gridDim = grid;
  blockDim = block;
  for (unsigned i = 0; i < grid.x; ++i) {
    blockIdx.x = reverse ? grid.x - 1 - i : i;
    machine->run(block.x, [](void* context) { (*static_cast<Body*>(context))(); }, &body);
  }
}

}  // namespace cuda_emulation
