// One thread that reads ahead and starts writing back. Requests are hints: they are served in order and never fail.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>

#include "file.h"

namespace warpmerge {

class Background {
 public:
  Background();
  // Drops what has not started.
  ~Background();
  Background(const Background&) = delete;
  Background& operator=(const Background&) = delete;

  // Starts reading [offset, offset + bytes) into the page cache.
  void read_ahead(std::shared_ptr<File> file, int64_t offset, int64_t bytes);
  // Tells that `bytes` were written to a file. Every kWriteback of them its dirty pages start on their way to the disk.
  void wrote(const std::shared_ptr<File>& file, int64_t bytes);

 private:
  struct Request {
    std::shared_ptr<File> file;
    int64_t offset, bytes;
    bool write;
  };
  void serve();

  static constexpr int64_t kWriteback = 32 << 20;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Request> queue_;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace warpmerge
