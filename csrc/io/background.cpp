#include "background.h"

namespace warpmerge {

Background::Background() : thread_([this] { serve(); }) {}

Background::~Background() {
  std::deque<Request> dropped;  // files may be closed with it, which takes no lock of this class
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
    dropped.swap(queue_);
  }
  changed_.notify_all();
  thread_.join();
}

void Background::read_ahead(std::shared_ptr<File> file, int64_t offset, int64_t bytes) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    queue_.push_back({std::move(file), offset, bytes, false});
  }
  changed_.notify_all();
}

void Background::wrote(const std::shared_ptr<File>& file, int64_t bytes) {
  if (!file->wrote(bytes, kWriteback)) return;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    queue_.push_front({file, 0, 0, true});
  }
  changed_.notify_all();
}

void Background::serve() {
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return stop_ || !queue_.empty(); });
    if (stop_) return;
    Request request = std::move(queue_.front());
    queue_.pop_front();
    lock.unlock();
    if (request.write)
      request.file->write_back();
    else
      request.file->read_ahead(request.offset, request.bytes);
    request.file.reset();
    lock.lock();
  }
}

}  // namespace warpmerge
