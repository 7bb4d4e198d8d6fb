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
    memory.data.reset();
    memory.data.reset(new char[bytes + kAlign]);
    memory.bytes = bytes + kAlign;
  }
  return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(memory.data.get()) + kAlign - 1) & ~(kAlign - 1));
}

// Tasks in the order: prepare 0, then for each item i: prepare i+1, tiles of i. When the tiles of an item come up, its
// prepare was handed out a whole item earlier.
Launch::Launch(std::vector<std::shared_ptr<Item>> items) {
  slots_.reserve(items.size());
  for (auto& item : items) {
    const int64_t tiles = item->tiles();
    auto slot = std::unique_ptr<Slot>(new Slot{std::move(item), 0, tiles, {tiles}, {false}});
    slots_.push_back(std::move(slot));
  }
  tasks_ = slots_.empty() ? 0 : 1;
  for (size_t i = 0; i < slots_.size(); ++i) {
    if (i + 1 < slots_.size()) ++tasks_;
    slots_[i]->first_task = tasks_;
    tasks_ += slots_[i]->tiles;
  }
  unfinished_ = tasks_;
}

Launch::Task Launch::task(int64_t index) {
  if (index == 0) return {slots_[0].get(), -1};
  auto after = std::upper_bound(slots_.begin(), slots_.end(), index,
                                [](int64_t i, const std::unique_ptr<Slot>& slot) { return i < slot->first_task; });
  if (after != slots_.begin()) {
    Slot* slot = (after - 1)->get();
    if (index < slot->first_task + slot->tiles) return {slot, index - slot->first_task};
  }
  // Directly before the tiles of slot `after` sits the prepare of the slot behind it.
  return {(after + 1)->get(), -1};
}

void Launch::run(int64_t index, Worker& worker) {
  const Task task = this->task(index);
  Slot& slot = *task.slot;
  if (!cancelled_) {
    try {
      if (task.tile < 0) {
        slot.item->prepare(worker);
      } else {
        while (!slot.prepared.load(std::memory_order_acquire)) std::this_thread::yield();
        if (!cancelled_) slot.item->tile(task.tile, worker);
      }
    } catch (...) {
      std::lock_guard<std::mutex> lock(mutex_);
      if (!error_) error_ = std::current_exception();
      cancelled_ = true;
    }
  }
  if (task.tile < 0) {
    slot.prepared.store(true, std::memory_order_release);
  } else if (slot.remaining.fetch_sub(1, std::memory_order_acq_rel) == 1 && !cancelled_) {
    try {
      slot.item->finish(worker);
    } catch (...) {
      std::lock_guard<std::mutex> lock(mutex_);
      if (!error_) error_ = std::current_exception();
      cancelled_ = true;
    }
  }
  retire();
}

void Launch::retire() {
  if (unfinished_.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
  std::lock_guard<std::mutex> lock(mutex_);
  done_.notify_all();
}

bool Launch::wait_for(int milliseconds) {
  std::unique_lock<std::mutex> lock(mutex_);
  return done_.wait_for(lock, std::chrono::milliseconds(milliseconds), [this] { return unfinished_.load() == 0; });
}

void Launch::check() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (error_) std::rethrow_exception(error_);
}

Pool::Pool(int threads, const Kernels& kernels) : kernels_(kernels) {
  for (int i = 0; i < std::max(1, threads); ++i) threads_.emplace_back([this, i] { work(i); });
}

Pool::~Pool() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    for (auto& launch : launches_) launch->cancel();
    stop_ = true;
  }
  available_.notify_all();
  for (auto& thread : threads_) thread.join();
}

std::shared_ptr<Launch> Pool::submit(std::vector<std::shared_ptr<Item>> items) {
  auto launch = std::make_shared<Launch>(std::move(items));
  if (launch->tasks_ > 0) {
    std::lock_guard<std::mutex> lock(mutex_);
    launches_.push_back(launch);
    available_.notify_all();
  }
  return launch;
}

void Pool::work(int index) {
#if defined(__x86_64__)
  _mm_setcsr(0x1f80);  // a thread inherits its creator's mode: round to nearest, keep subnormals, whatever that was
#endif
  Worker worker(index);
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    available_.wait(lock, [this] { return stop_ || !launches_.empty(); });
    if (launches_.empty()) return;
    std::shared_ptr<Launch> launch = launches_.front();
    const int64_t task = launch->next_++;
    if (launch->next_ == launch->tasks_) launches_.pop_front();
    lock.unlock();
    launch->run(task, worker);
    launch.reset();
    lock.lock();
  }
}

}  // namespace warpmerge
