// The one way of native code to the files: every call to the operating system's files goes through here, as that of
// Python goes through python/warpmerge/system.py.
//
// A test may watch: it is asked before each call, and can let it fail, have it done in part, or note it. Otherwise a
// call costs one look at an atomic pointer more.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>

namespace warpmerge::system {

// `bytes` and `offset` as in the call, 0 where it has none; `data`: what is to be written, or the path that is
// to be opened. Returns 0 to go on, an errno to fail with, or -n to do n bytes only. May be called from any thread.
using Watcher = int64_t (*)(const char* call, int fd, int64_t offset, int64_t bytes, const void* data);
void watch(Watcher watcher);

// Results and errno as of the calls of the same name. After a signal, open, pread and pwrite are repeated. A descriptor
// is closed after EINTR too, so `close` never fails with it.
int open(const char* path, int flags);
int close(int fd);
ssize_t pread(int fd, void* data, size_t bytes, int64_t offset);
ssize_t pwrite(int fd, const void* data, size_t bytes, int64_t offset);

// Hints, which never fail. Starts reading a range into the page cache, unless its ends are there.
void read_ahead(int fd, int64_t offset, int64_t bytes);
// Starts writing a file's dirty pages to the disk.
void write_back(int fd);

}  // namespace warpmerge::system
