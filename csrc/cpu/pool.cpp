#include "pool.h"

#include <algorithm>
#include <chrono>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace warpmerge {
void* Worker::grow(Memory& memory, size_t bytes) {
  constexpr size_t kAlign = 64;
  if (memory.bytes < bytes + kAlign) {
    memory.bytes = 0;  // should the next line throw
    memory.data.reset();
    memory.data.reset(new char[bytes + kAlign]);
    memory.bytes = bytes + kAlign;
  }
  return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(memory.data.get()) + kAlign - 1) & ~(kAlign - 1));
}

// Tasks: one for each item that prepares itself, then the tiles of all items in order.
Launch::Launch(std::vector<std::shared_ptr<Item>> items) {
  slots_.reserve(items.size());
  for (auto& item : items) {
    const int64_t tiles = item->tiles();
    const bool prepares = item->prepares();
    slots_.push_back(std::unique_ptr<Slot>(new Slot{std::move(item), 0, tiles, {tiles}, {!prepares}}));
    if (prepares) to_prepare_.push_back(slots_.back().get());
  }
  tasks_ = int64_t(to_prepare_.size());
  for (auto& slot : slots_) {
    slot->first_task = tasks_;
    tasks_ += slot->tiles;
  }
  unfinished_ = tasks_;
}

Launch::Slot& Launch::slot_of(int64_t task) const {
  const auto after = std::upper_bound(slots_.begin(), slots_.end(), task,
                                      [](int64_t t, const std::unique_ptr<Slot>& s) { return t < s->first_task; });
  return **(after - 1);
}

bool Launch::ready() const {
  return next_ < int64_t(to_prepare_.size()) || cancelled_ || slot_of(next_).prepared.load(std::memory_order_acquire);
}

template <class Action>
void Launch::attempt(const Action& action) {
  if (cancelled_) return;
  try {
    action();
  } catch (...) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!error_) error_ = std::current_exception();
    cancelled_ = true;
  }
}

void Launch::run(int64_t task, Worker& worker) {
  if (task < int64_t(to_prepare_.size())) {
    Slot& slot = *to_prepare_[size_t(task)];
    attempt([&] { slot.item->prepare(worker); });
    slot.prepared.store(true, std::memory_order_release);
  } else {
    Slot& slot = slot_of(task);
    attempt([&] { slot.item->tile(task - slot.first_task, worker); });
    if (slot.remaining.fetch_sub(1, std::memory_order_acq_rel) == 1) attempt([&] { slot.item->finish(worker); });
  }
  if (unfinished_.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
  std::lock_guard<std::mutex> lock(mutex_);
  done_.notify_all();
}

bool Launch::wait_for(int milliseconds) {
  std::unique_lock<std::mutex> lock(mutex_);
  return done_.wait_for(lock, std::chrono::milliseconds(milliseconds), [this] { return finished(); });
}

void Launch::wait() {
  std::unique_lock<std::mutex> lock(mutex_);
  done_.wait(lock, [this] { return finished(); });
}

void Launch::check() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (error_) std::rethrow_exception(error_);
}

Pool::Pool(int threads, const Kernels& kernels) : kernels_(kernels) {
  try {
    for (int i = 0; i < std::max(1, threads); ++i) threads_.emplace_back([this, i] { work(i); });
  } catch (...) {  // a thread could not start: the others must end before the error is thrown on
    stop();
    throw;
  }
}

Pool::~Pool() { stop(); }

void Pool::stop() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    for (auto& launch : launches_) launch->cancel();
    stop_ = true;
  }
  available_.notify_all();
  for (auto& thread : threads_) thread.join();
}

void Pool::start(std::shared_ptr<Launch> launch) {
  if (launch->finished()) return;
  std::lock_guard<std::mutex> lock(mutex_);
  launches_.push_back(std::move(launch));
  available_.notify_all();
}

void Pool::work(int index) {
  // A thread inherits its creator's floating-point mode. Kernels need rounding to nearest, and subnormals.
#if defined(__x86_64__)
  _mm_setcsr(0x1f80);
#elif defined(__aarch64__)
  asm volatile("msr fpcr, %0" ::"r"(uint64_t(0)));
#endif
  Worker worker(index);
  std::unique_lock<std::mutex> lock(mutex_);
  auto next = launches_.end();
  for (;;) {
    available_.wait(lock, [&] {
      next = std::find_if(launches_.begin(), launches_.end(), [](const auto& launch) { return launch->ready(); });
      return next != launches_.end() || (stop_ && launches_.empty());
    });
    if (next == launches_.end()) return;
    std::shared_ptr<Launch> launch = *next;
    const int64_t task = launch->next_++;
    if (launch->next_ == launch->tasks_) launches_.erase(next);
    lock.unlock();
    launch->run(task, worker);
    const bool prepared = task < int64_t(launch->to_prepare_.size());
    launch.reset();
    lock.lock();
    if (prepared) available_.notify_all();  // tiles that waited for it are ready now
  }
}

}  // namespace warpmerge
