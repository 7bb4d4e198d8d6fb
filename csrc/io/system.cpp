#include "system.h"

#include <fcntl.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>

namespace warpmerge::system {
namespace {

std::atomic<Watcher> watcher{nullptr};

// Whether to go on with a call. `bytes` may become less; otherwise errno says why not.
bool allowed(const char* call, int fd, int64_t offset, size_t* bytes = nullptr, const void* data = nullptr) {
  const Watcher asked = watcher.load(std::memory_order_acquire);
  if (!asked) return true;
  const int64_t answer = asked(call, fd, offset, bytes ? int64_t(*bytes) : 0, data);
  if (answer > 0) errno = int(answer);
  if (answer < 0 && bytes) *bytes = std::min(*bytes, size_t(-answer));
  return answer <= 0;
}

// The result of a call that is repeated after a signal.
template <class Action>
auto repeated(const Action& action) {
  for (;;) {
    const auto result = action();
    if (result >= 0 || errno != EINTR) return result;
  }
}

#if defined(__linux__)
// Whether the byte is in the page cache: asking for a range that is there costs a walk over all its pages.
bool resident(int fd, int64_t offset) {
  char byte;
  iovec vector{&byte, 1};
  return ::preadv2(fd, &vector, 1, offset, RWF_NOWAIT) == 1;
}
#endif

}  // namespace

void watch(Watcher asked) { watcher.store(asked, std::memory_order_release); }

int open(const char* path, int flags) {
  size_t length = std::strlen(path);
  return repeated([&] { return allowed("open", -1, 0, &length, path) ? ::open(path, flags | O_CLOEXEC) : -1; });
}

int close(int fd) {
  const bool fails = !allowed("close", fd, 0);
  const int reason = errno;
  int result = ::close(fd);
  if (fails) {
    result = -1;
    errno = reason;
  }
  return result < 0 && errno == EINTR ? 0 : result;
}

ssize_t pread(int fd, void* data, size_t bytes, int64_t offset) {
  return repeated([&] {
    size_t some = bytes;
    return allowed("pread", fd, offset, &some) ? ::pread(fd, data, some, offset) : ssize_t(-1);
  });
}

ssize_t pwrite(int fd, const void* data, size_t bytes, int64_t offset) {
  return repeated([&] {
    size_t some = bytes;
    return allowed("pwrite", fd, offset, &some, data) ? ::pwrite(fd, data, some, offset) : ssize_t(-1);
  });
}

void read_ahead(int fd, int64_t offset, int64_t bytes) {
#if defined(__linux__)
  if (bytes <= 0 || (resident(fd, offset) && resident(fd, offset + bytes - 1))) return;
  if (allowed("readahead", fd, offset)) ::readahead(fd, offset, size_t(bytes));
#else
  (void)fd, (void)offset, (void)bytes;
#endif
}

void write_back(int fd) {
#if defined(__linux__)
  if (allowed("sync_file_range", fd, 0)) ::sync_file_range(fd, 0, 0, SYNC_FILE_RANGE_WRITE);
#else
  (void)fd;
#endif
}

}  // namespace warpmerge::system
