#include "host_pool.h"

#include <algorithm>

namespace py = pybind11;

namespace warpmerge {

std::shared_ptr<Launch> HostPool::submit(std::vector<std::shared_ptr<Item>> items, py::object owner) {
  auto launch = std::make_shared<Launch>(std::move(items));
  std::vector<Held> finished;  // owners are let go of when `held_` is in order: that may run any code
  const auto first = std::partition(held_.begin(), held_.end(), [](const Held& h) { return !h.first->finished(); });
  std::move(first, held_.end(), std::back_inserter(finished));
  held_.erase(first, held_.end());
  held_.emplace_back(launch, std::move(owner));
  pool_->start(launch);
  return launch;
}

void HostPool::settle() {
  if (getpid() != creator_) return;
  std::vector<Held> held;  // its owners go when all launches have ended
  held.swap(held_);
  py::gil_scoped_release release;
  for (const Held& launch : held) launch.first->cancel();
  for (const Held& launch : held) launch.first->wait();
}

void Guard::exit(const py::object& raised) const {
  constexpr int kAttempts = 3;  // at an action that fails by itself
  bool interrupted = false;
  for (int failures = 0;;) {
    try {
      action_();
      break;
    } catch (py::error_already_set& error) {
      if (error.matches(PyExc_KeyboardInterrupt))
        interrupted = true;
      else if (++failures == kAttempts)
        throw;
    }
  }
  if (!interrupted || !raised.is_none()) return;
  PyErr_SetNone(PyExc_KeyboardInterrupt);
  throw py::error_already_set();
}

}  // namespace warpmerge
