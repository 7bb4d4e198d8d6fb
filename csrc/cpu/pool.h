// A pool of threads that works through launches in the order in which they were submitted.
//
// A launch is a list of items. An item is one kernel on one tensor, cut into tiles. Workers take the tiles in order.
// When a launch has no tile left, idle workers go on with the next launch. So no worker waits as long as the host
// thread submits ahead. In exchange several launches hold memory for partial results at once.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace warpmerge {

struct Kernels;

// A worker's memory: allocated once, it grows to the largest request.
class Worker {
 public:
  explicit Worker(int index) : index(index) {}
  void* scratch(size_t bytes) { return grow(scratch_, bytes); }
  void* input_buffer(size_t bytes) { return grow(input_, bytes); }
  void* output_buffer(size_t bytes) { return grow(output_, bytes); }
  void* rank_buffer(size_t bytes) { return grow(ranks_, bytes); }
  const int index;

 private:
  struct Memory {
    std::unique_ptr<char[]> data;
    size_t bytes = 0;
  };
  static void* grow(Memory& memory, size_t bytes);
  Memory scratch_, input_, output_, ranks_;
};

// One kernel on one tensor. `prepare` runs before the first tile, `finish` after the last, each on one worker.
class Item {
 public:
  virtual ~Item() = default;
  virtual int64_t tiles() const = 0;
  virtual bool prepares() const { return false; }
  virtual void prepare(Worker&) {}
  virtual void tile(int64_t index, Worker&) = 0;
  virtual void finish(Worker&) {}
};

class Launch {
 public:
  explicit Launch(std::vector<std::shared_ptr<Item>> items);
  // True when all is done or given up. Waits at most this long.
  bool wait_for(int milliseconds);
  // Waits until all is done or given up.
  void wait();
  bool finished() const { return unfinished_ == 0; }
  // Drops the tiles that have not started.
  void cancel() { cancelled_ = true; }
  // Rethrows the first exception of a tile, if there is one.
  void check();

 private:
  friend class Pool;
  struct Slot {
    std::shared_ptr<Item> item;
    int64_t first_task;  // the task of its first tile; before the tiles of slot 0, tasks prepare the items in order
    int64_t tiles;
    std::atomic<int64_t> remaining;
    std::atomic<bool> prepared;
  };
  bool ready() const;  // the next task need not wait for its item's preparation
  void run(int64_t task, Worker& worker);
  template <class Action>
  void attempt(const Action& action);
  Slot& slot_of(int64_t task) const;

  std::vector<std::unique_ptr<Slot>> slots_;
  std::vector<Slot*> to_prepare_;
  int64_t tasks_ = 0, next_ = 0;  // next_ is guarded by the pool's mutex
  std::atomic<int64_t> unfinished_{0};
  std::atomic<bool> cancelled_{false};
  std::mutex mutex_;
  std::condition_variable done_;
  std::exception_ptr error_;
};

class Pool {
 public:
  Pool(int threads, const Kernels& kernels);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  // Puts a launch behind the others.
  void start(std::shared_ptr<Launch> launch);
  int threads() const { return int(threads_.size()); }
  const Kernels& kernels() const { return kernels_; }

 private:
  void work(int index);
  void stop();

  const Kernels& kernels_;
  std::mutex mutex_;
  std::condition_variable available_;
  std::deque<std::shared_ptr<Launch>> launches_;
  bool stop_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace warpmerge
