#include "file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <mutex>
#include <thread>
#include <vector>

#include "system.h"

namespace warpmerge {

// The open files that can be opened again, in a circle. A hand goes round to find one to close: it passes by files that
// were used since its last round. So the choice is near to the least recently used, and a use costs one store.
//
// Nobody calls the system while holding the mutex: a slow disk would keep others waiting, and a watcher may run code
// that lets go of other files.
class OpenFiles {
 public:
  std::mutex mutex;
  int64_t limit = 512;
  int64_t opening = 0;  // files that are about to be added

  void add(File* file) { files_.push_back(file); }
  void remove(File* file) { files_.erase(std::remove(files_.begin(), files_.end(), file), files_.end()); }
  bool is_full() const { return int64_t(files_.size()) + opening >= limit; }
  // The descriptor of a file that is not in use, for the caller to close; -1 if all are in use.
  int take_one() {
    for (size_t steps = 2 * files_.size(); steps > 0; --steps) {
      hand_ = (hand_ + 1) % files_.size();
      File* file = files_[hand_];
      int fd;
      if (file->recent_.exchange(false) || !file->detach_unless_used(&fd)) continue;
      files_.erase(files_.begin() + std::ptrdiff_t(hand_));
      if (fd >= 0) return fd;
    }
    return -1;
  }

 private:
  std::vector<File*> files_;
  size_t hand_ = 0;
};

namespace {

OpenFiles& open_files() {
  static OpenFiles* files = new OpenFiles;  // never destroyed: files may outlive static objects
  return *files;
}

File::Identity identity_of(const struct stat& status) {
  constexpr int64_t kSecond = 1000000000;
  return {int64_t(status.st_dev), int64_t(status.st_ino), int64_t(status.st_size),
          status.st_mtim.tv_sec * kSecond + status.st_mtim.tv_nsec,
          status.st_ctim.tv_sec * kSecond + status.st_ctim.tv_nsec};
}

}  // namespace

class File::Use {
 public:
  explicit Use(File& file) : file_(file) {
    for (int users = file.users_.load();;) {
      if (users < 0) {  // somebody is closing it
        std::this_thread::yield();
        users = file.users_.load();
      } else if (file.users_.compare_exchange_weak(users, users + 1)) {
        break;
      }
    }
    file.recent_.store(true, std::memory_order_relaxed);
    fd = file.fd_.load();
    if (fd >= 0 && !file.closed_) return;
    try {
      fd = file.opened();
    } catch (...) {
      file.release();
      throw;
    }
  }
  ~Use() { file_.release(); }
  Use(const Use&) = delete;
  Use& operator=(const Use&) = delete;

  int fd;

 private:
  File& file_;
};

File::File(int fd) : reopens_(false), fd_(fd) {}

File::File(std::string path, const Identity& identity) : path_(std::move(path)), identity_(identity), reopens_(true) {}

File::~File() {
  if (reopens_) {
    std::lock_guard<std::mutex> lock(open_files().mutex);
    open_files().remove(this);
  }
  if (fd_ >= 0) system::close(fd_);
}

int File::opened() {
  OpenFiles& others = open_files();
  std::unique_lock<std::mutex> lock(others.mutex);
  // Closes another file. False if all are in use.
  const auto make_room = [&] {
    const int taken = others.take_one();
    if (taken < 0) return false;
    lock.unlock();
    system::close(taken);
    lock.lock();
    return true;
  };
  while (fd_ < 0 && others.is_full() && make_room()) {
  }
  if (closed_ || !reopens_) throw InputError(EBADF, path_, "it is closed");
  if (fd_ >= 0) return fd_;  // somebody else has opened it meanwhile
  ++others.opening;
  int fd, reason = 0;
  do {
    lock.unlock();
    fd = verified(&reason);
    lock.lock();
  } while (fd < 0 && (reason == EMFILE || reason == ENFILE) && make_room());
  --others.opening;
  const int there = fd_;
  if (fd >= 0 && there < 0 && !closed_) {
    others.add(this);
    fd_ = fd;
    return fd;
  }
  lock.unlock();
  if (fd >= 0) system::close(fd);
  if (closed_) throw InputError(EBADF, path_, "it is closed");
  if (there >= 0) return there;
  throw InputError(reason, path_,
                   reason == ESTALE ? "it is not the file that it was" : std::generic_category().message(reason));
}

// A descriptor of the file, if it is the one that it was. -1 otherwise; `reason` is an errno.
int File::verified(int* reason) const {
  const int fd = system::open(path_.c_str(), O_RDONLY | O_NONBLOCK | O_NOCTTY);
  struct stat status;
  if (fd < 0) {
    *reason = errno;
  } else if (::fstat(fd, &status) != 0 || identity_of(status) != identity_) {
    system::close(fd);
    *reason = ESTALE;
    return -1;
  }
  return fd;
}

// Whether it was not in use. Then it has no descriptor any more: `fd` is for the caller to close, -1 if there was none.
bool File::detach_unless_used(int* fd) {
  int users = 0;
  *fd = -1;
  if (!users_.compare_exchange_strong(users, -1)) return false;
  *fd = fd_.exchange(-1);
  users_ = 0;
  return true;
}

void File::release() {
  int fd;  // whoever closed it has been told that all is well; nobody closes an output in use
  if (users_.fetch_sub(1) == 1 && closed_ && detach_unless_used(&fd) && fd >= 0) system::close(fd);
}

void File::close() {
  int fd;
  {
    std::lock_guard<std::mutex> lock(open_files().mutex);
    closed_ = true;
    detach_unless_used(&fd);
    if (reopens_) open_files().remove(this);
  }
  const bool lost = fd >= 0 && system::close(fd) < 0 && !reopens_;  // nothing is lost of what was only read
  if (lost) throw std::system_error(errno, std::generic_category());
}

void File::put_away() {
  int fd = -1;
  {
    std::lock_guard<std::mutex> lock(open_files().mutex);
    if (reopens_ && detach_unless_used(&fd)) open_files().remove(this);
  }
  if (fd >= 0) system::close(fd);
}

void File::read(void* data, size_t bytes, int64_t offset) {
  const Use use(*this);
  for (char* next = static_cast<char*>(data); bytes > 0;) {
    const ssize_t got = system::pread(use.fd, next, bytes, offset);
    if (got < 0) throw InputError(errno, path_, std::generic_category().message(errno));
    if (got == 0) throw InputError(ESTALE, path_, "it ends early");
    next += got;
    offset += got;
    bytes -= size_t(got);
  }
}

void File::write(const void* data, size_t bytes, int64_t offset) {
  const Use use(*this);
  for (const char* next = static_cast<const char*>(data); bytes > 0;) {
    const ssize_t written = system::pwrite(use.fd, next, bytes, offset);
    if (written < 0) throw std::system_error(errno, std::generic_category());
    next += written;
    offset += written;
    bytes -= size_t(written);
  }
}

void File::read_ahead(int64_t offset, int64_t bytes) {
  try {
    system::read_ahead(Use(*this).fd, offset, bytes);
  } catch (const std::system_error&) {  // a hint: whoever reads the file will say it
  }
}

void File::write_back() {
  try {
    system::write_back(Use(*this).fd);
  } catch (const std::system_error&) {
  }
}

bool File::wrote(int64_t bytes, int64_t limit) {
  int64_t dirty = dirty_.fetch_add(bytes) + bytes;
  return dirty >= limit && dirty_.compare_exchange_strong(dirty, 0);
}

void File::limit_open(int64_t count) {
  std::lock_guard<std::mutex> lock(open_files().mutex);
  open_files().limit = std::max<int64_t>(count, 1);
}

}  // namespace warpmerge
