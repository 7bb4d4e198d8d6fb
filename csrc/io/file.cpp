#include "file.h"

#include <fcntl.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

namespace warpmerge {

void write_at(int fd, const void* data, size_t bytes, int64_t offset) {
  const char* next = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t written = ::pwrite(fd, next, bytes, offset);
    if (written < 0) {
      if (errno == EINTR) continue;
      throw std::system_error(errno, std::generic_category());
    }
    next += written;
    offset += written;
    bytes -= size_t(written);
  }
}

void read_at(int fd, void* data, size_t bytes, int64_t offset) {
  char* next = static_cast<char*>(data);
  while (bytes > 0) {
    const ssize_t got = ::pread(fd, next, bytes, offset);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) throw std::system_error(EFAULT, std::generic_category());
    next += got;
    offset += got;
    bytes -= size_t(got);
  }
}

#if defined(__linux__)
// Whether the byte is in the page cache: asking for a range that is there costs a walk over all its pages.
static bool resident(int fd, int64_t offset) {
  char byte;
  iovec vector{&byte, 1};
  return ::preadv2(fd, &vector, 1, offset, RWF_NOWAIT) == 1;
}
#endif

Background::Background() : thread_([this] { serve(); }) {}

Background::~Background() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
    queue_.clear();
  }
  changed_.notify_all();
  thread_.join();
}

void Background::read_ahead(int fd, int64_t offset, int64_t bytes) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    queue_.push_back({fd, offset, bytes, false});
  }
  changed_.notify_all();
}

void Background::wrote(int fd, int64_t bytes) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    int64_t& dirty = dirty_[fd];
    dirty += bytes;
    if (dirty < kWriteback) return;
    dirty = 0;
    queue_.push_front({fd, 0, 0, true});
  }
  changed_.notify_all();
}

void Background::cancel() {
  std::lock_guard<std::mutex> lock(mutex_);
  queue_.clear();
}

void Background::drain() {
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [this] { return queue_.empty() && !busy_; });
  dirty_.clear();
}

void Background::serve() {
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return stop_ || !queue_.empty(); });
    if (stop_) return;
    const Request request = queue_.front();
    queue_.pop_front();
    busy_ = true;
    lock.unlock();
#if defined(__linux__)
    if (request.write)
      ::sync_file_range(request.fd, 0, 0, SYNC_FILE_RANGE_WRITE);
    else if (!resident(request.fd, request.offset) || !resident(request.fd, request.offset + request.bytes - 1))
      ::readahead(request.fd, request.offset, size_t(request.bytes));
#else
    (void)request;
#endif
    lock.lock();
    busy_ = false;
    if (queue_.empty()) changed_.notify_all();
  }
}

}  // namespace warpmerge
