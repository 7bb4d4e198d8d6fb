// Positioned file access for workers, and one background thread that reads ahead and starts writing back.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <mutex>
#include <thread>

namespace warpmerge {

// Writes all of it or throws std::system_error. Safe from many threads: the file offset is not used.
void write_at(int fd, const void* data, size_t bytes, int64_t offset);

// Reads all of it. Throws std::system_error with EFAULT if the file ends early or cannot be read, so that callers can
// tell an input's fault from the output's.
void read_at(int fd, void* data, size_t bytes, int64_t offset);

// Requests are served in order by one thread; they are hints and never fail.
class Background {
 public:
  Background();
  ~Background();
  Background(const Background&) = delete;
  Background& operator=(const Background&) = delete;

  // Starts reading [offset, offset + bytes) into the page cache.
  void read_ahead(int fd, int64_t offset, int64_t bytes);
  // Tells that `bytes` were written to fd; every kWriteback of them the file's dirty pages start on their way to disk.
  void wrote(int fd, int64_t bytes);
  // Waits until no request for any file is pending: after this, descriptors may be closed.
  void drain();
  // Drops read-ahead requests that have not started.
  void cancel();

 private:
  struct Request {
    int fd;
    int64_t offset, bytes;
    bool write;
  };
  void serve();

  static constexpr int64_t kWriteback = 32 << 20;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Request> queue_;
  std::map<int, int64_t> dirty_;
  bool busy_ = false, stop_ = false;
  std::thread thread_;
};

}  // namespace warpmerge
