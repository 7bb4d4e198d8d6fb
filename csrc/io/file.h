// Files as views, outputs and the read-ahead refer to them. A file is closed when nobody refers to it any more.
//
// A file to read from is opened when somebody first reads it. A merge may read more shards than a process may have
// descriptors, so such a file can be closed while nobody is at it, and is opened again. It must then be the same file:
// device, inode, size and times are compared each time.
#pragma once

#include <sys/stat.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <system_error>

namespace warpmerge {

// An input could not be read: it has changed (ESTALE), is closed (EBADF), or its disk fails. Errors of outputs are
// plain std::system_errors, so callers can tell whose fault it was.
class InputError : public std::system_error {
 public:
  InputError(int code, const std::string& path, const std::string& why)
      : std::system_error(code, std::generic_category(), why), path(path), why(why) {}
  const std::string path, why;
};

class File {
 public:
  // Device, inode, size, and the times of the last change of the content and of the inode in ns.
  using Identity = std::array<int64_t, 5>;

  // Takes over a descriptor.
  explicit File(int fd);
  // A file that is opened when it is read.
  File(std::string path, const Identity& identity);
  ~File();
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  // Reads all of it or throws InputError. Safe from many threads, as is `write`: no file offset is used.
  void read(void* data, size_t bytes, int64_t offset);
  // Writes all of it or throws std::system_error.
  void write(const void* data, size_t bytes, int64_t offset);
  void read_ahead(int64_t offset, int64_t bytes);
  void write_back();
  // Closes the descriptor as soon as nobody is at the file. Whoever reads it afterwards gets an InputError. Throws
  // std::system_error if the system says that data was lost.
  void close();
  // Closes it, unless somebody is at it, until it is read again: then it must still be the same file.
  void put_away();
  // The descriptor that was taken over, -1 after `close`.
  int fd() const { return fd_; }
  // Adds to the bytes written since the last call that returned true; true once they are `limit`.
  bool wrote(int64_t bytes, int64_t limit);

  // How many files that can be opened again are open at once, at most. Files in use are never closed.
  static void limit_open(int64_t count);

 private:
  class Use;  // while it lives, the descriptor stays open
  friend class OpenFiles;
  int opened();
  int verified(int* reason) const;
  bool detach_unless_used(int* fd);
  void release();

  const std::string path_;
  const Identity identity_{};
  const bool reopens_;
  std::atomic<int> fd_{-1};
  std::atomic<int> users_{0};  // -1 while it is being closed
  std::atomic<bool> recent_{false}, closed_{false};
  std::atomic<int64_t> dirty_{0};
};

}  // namespace warpmerge
