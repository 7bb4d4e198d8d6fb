// The pool as Python has it, and guards: what they promise holds whatever signals arrive.
//
// Python may raise KeyboardInterrupt between any two of its instructions, so also between the start of a launch and a
// note of it. Workers would then go on in memory that is freed. Therefore the pool itself knows a launch, and holds
// what the launch needs, before a worker can see it. `settle` drops what has not started and waits for what has; no
// signal ends that wait. A guard calls it when a `with` block is left: Python looks for signals neither between an
// exception and the exit of a block, nor within an exit that is native.
#pragma once

#include <pybind11/pybind11.h>
#include <unistd.h>

#include <memory>
#include <utility>
#include <vector>

#include "../cpu/pool.h"

namespace warpmerge {

// Owned objects may have threads, or ask a watcher in Python, so they are destroyed without the lock of the
// interpreter. Threads do not survive a fork: a child process can neither join them nor wait for locks that they hold.
// So a child process leaves the object as it is.
template <class T>
std::shared_ptr<T> threaded(T* object) {
  return std::shared_ptr<T>(object, [creator = getpid()](T* owned) {
    if (getpid() != creator) return;
    if (PyGILState_Check()) {
      pybind11::gil_scoped_release release;
      delete owned;
    } else {
      delete owned;
    }
  });
}

class HostPool {
 public:
  HostPool(int threads, const Kernels& kernels) : pool_(threaded(new Pool(threads, kernels))), creator_(getpid()) {}
  ~HostPool() { settle(); }
  HostPool(const HostPool&) = delete;
  HostPool& operator=(const HostPool&) = delete;

  // `owner`: what must live as long as workers are at the items.
  std::shared_ptr<Launch> submit(std::vector<std::shared_ptr<Item>> items, pybind11::object owner);
  // Drops what has not started, waits for what has, and lets go of the owners.
  void settle();
  const Kernels& kernels() const { return pool_->kernels(); }
  int threads() const { return pool_->threads(); }

 private:
  using Held = std::pair<std::shared_ptr<Launch>, pybind11::object>;
  std::shared_ptr<Pool> pool_;
  std::vector<Held> held_;  // the lock of the interpreter guards it
  const pid_t creator_;
};

// Calls `action` when a block is left, to its end: if a signal interrupts it, again. So an action must do what is left
// to do when it is called once more.
class Guard {
 public:
  explicit Guard(pybind11::object action) : action_(std::move(action)) {}
  void exit(const pybind11::object& raised) const;

 private:
  const pybind11::object action_;
};

}  // namespace warpmerge
