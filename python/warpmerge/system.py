"""The one way to the files. Every call of the engine to the operating system's files goes through here.

`System` holds the calls; the functions below it are what the rest of the program uses. Each does all of its work or
raises OSError: a short write or read is continued, never ignored. Native code has the same seam in csrc/io/system.h.

A test puts another `System` in place (`using`), which fails a chosen call, writes half of it or notes what happened.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PIECE = 1 << 20  # bytes that are copied at a time
TICK = 20_000_000  # nanoseconds within which two changes of a file may get the same time
SECONDS = 2_000_000_000  # the same where a file system keeps whole seconds
AnyPath = str | Path
WRITE = os.O_WRONLY | os.O_NOFOLLOW  # a link in place of a file of one's own is an error


class System:
    """The calls themselves. Python repeats them after a signal, so EINTR is seen of `close` only."""

    def open(self, path: AnyPath, flags: int, mode: int = 0o666) -> int:
        return os.open(path, flags | os.O_CLOEXEC, mode)

    def close(self, fd: int) -> None:
        os.close(fd)

    def pread(self, fd: int, nbytes: int, offset: int) -> bytes:
        return os.pread(fd, nbytes, offset)

    def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        return os.pwrite(fd, data, offset)

    def fsync(self, fd: int) -> None:
        os.fsync(fd)

    def fdatasync(self, fd: int) -> None:
        os.fdatasync(fd)

    def fallocate(self, fd: int, nbytes: int) -> None:
        os.posix_fallocate(fd, 0, nbytes)

    def truncate(self, fd: int, nbytes: int) -> None:
        os.ftruncate(fd, nbytes)

    def rename(self, source: AnyPath, target: AnyPath) -> None:
        os.replace(source, target)

    def unlink(self, path: AnyPath) -> None:
        os.unlink(path)

    def mkdir(self, path: AnyPath) -> None:
        os.mkdir(path)

    def rmdir(self, path: AnyPath) -> None:
        os.rmdir(path)

    def stat(self, path: AnyPath) -> os.stat_result:
        return os.stat(path)

    def lstat(self, path: AnyPath) -> os.stat_result:
        return os.lstat(path)

    def fstat(self, fd: int) -> os.stat_result:
        return os.fstat(fd)

    def listdir(self, path: AnyPath) -> list[str]:
        return os.listdir(path)

    def lock(self, fd: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def free(self, path: AnyPath) -> int:
        return shutil.disk_usage(path).free


calls = System()


@contextlib.contextmanager
def using(system: System) -> Iterator[System]:
    """Sends every call of the block to another `System`."""
    global calls
    before, calls = calls, system
    try:
        yield system
    finally:
        calls = before


class Identity(NamedTuple):
    """What changes when a file is replaced or written to: the times are those of its content and of its inode."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


def identity(status: os.stat_result) -> Identity:
    return Identity(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def settled(path: AnyPath) -> os.stat_result:
    """The status of a file, after which every change to the file shows in its identity.

    The clock of files ticks. What changes a file twice within a tick leaves the same time, so a file that has just been
    written to is looked at again a tick later.
    """
    status = calls.stat(path)
    tick = TICK if status.st_ctime_ns % 1_000_000_000 else SECONDS
    left = status.st_ctime_ns + tick - time.time_ns()
    if not 0 < left <= tick:  # long ago, or by the clock of another machine
        return status
    time.sleep(left / 1e9)
    return calls.stat(path)


def open_regular(path: AnyPath, *, follow: bool = True) -> int:
    """A descriptor for reading. A FIFO or a device neither blocks nor is read: it is an OSError (EINVAL).

    `follow`: whether the path may be a link itself. A name that no file can have is an OSError too.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | (0 if follow else os.O_NOFOLLOW)
    try:
        fd = calls.open(path, flags)
    except ValueError:
        raise OSError(errno.EINVAL, "no file can have this name", str(path)) from None
    try:
        if not stat.S_ISREG(calls.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    except BaseException:
        close(fd)
        raise
    return fd


def close(fd: int) -> None:
    """Closes a descriptor. After EINTR Linux has closed it as well."""
    with contextlib.suppress(InterruptedError):
        calls.close(fd)


def read_at(fd: int, nbytes: int, offset: int) -> bytes:
    """So many bytes, fewer only at the end of the file."""
    parts = []
    while nbytes:
        part = calls.pread(fd, nbytes, offset)
        if not part:
            break
        parts.append(part)
        offset, nbytes = offset + len(part), nbytes - len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def write_at(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Writes all of it."""
    left = memoryview(data).cast("B")
    while left:
        written = calls.pwrite(fd, left, offset)
        left, offset = left[written:], offset + written


def read_file(path: AnyPath, limit: int) -> bytes:
    """The content of a regular file. OSError: EINVAL for another kind of file, EFBIG for one of more than `limit`
    bytes."""
    fd = open_regular(path)
    try:
        size = calls.fstat(fd).st_size
        data = read_at(fd, size + 1, 0) if size <= limit else b""
        if size < len(data) <= limit:  # it grew, or its size is not known in advance
            data += read_at(fd, limit + 1 - len(data), len(data))
    finally:
        close(fd)
    if max(size, len(data)) > limit:
        raise OSError(errno.EFBIG, f"it has more than {limit:,} bytes", str(path))
    return data


def write_file(path: AnyPath, data: bytes, *, sync: bool) -> None:
    """Makes or replaces a file. `sync`: its content is on the disk afterwards."""
    fd = calls.open(path, WRITE | os.O_CREAT | os.O_TRUNC)
    try:
        write_at(fd, data, 0)
        if sync:
            calls.fsync(fd)
    finally:
        close(fd)


def copy_file(source: int, path: AnyPath, *, sync: bool) -> None:
    """Copies what an open file holds into a new file, a piece at a time."""
    fd = calls.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        at = 0
        while piece := read_at(source, PIECE, at):
            write_at(fd, piece, at)
            at += len(piece)
        if sync:
            calls.fsync(fd)
    finally:
        close(fd)


def create(path: AnyPath) -> int:
    """A descriptor of a new file, to read and write. OSError (EEXIST) if the name is taken: nothing is overwritten."""
    return calls.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW)


def make_directories(path: Path, *, sync: bool) -> list[Path]:
    """Makes a directory and those above it that are missing. Returns what it made, the deepest first."""
    missing = []
    for directory in (path, *path.parents):
        if exists(directory):
            break
        missing.append(directory)
    made: list[Path] = []
    for directory in reversed(missing):
        try:
            calls.mkdir(directory)
        except FileExistsError:
            if not stat.S_ISDIR(calls.stat(directory).st_mode):
                raise
            continue  # another process made it
        made.insert(0, directory)
        if sync:
            sync_directory(directory.parent)
    return made


def reserve(fd: int, nbytes: int) -> None:
    """Gives a file its size, and its space on the disk where the file system can reserve it."""
    try:
        calls.fallocate(fd, nbytes)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            raise
        calls.truncate(fd, nbytes)


def sync_directory(path: AnyPath) -> None:
    """The names in a directory are on the disk afterwards."""
    fd = calls.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        calls.fsync(fd)
    finally:
        close(fd)


def remove(path: AnyPath) -> None:
    """Removes a file, a link, or a directory with all that is in it. Links are not followed."""
    if stat.S_ISDIR(calls.lstat(path).st_mode):
        for name in calls.listdir(path):
            remove(os.path.join(path, name))
        calls.rmdir(path)
    else:
        calls.unlink(path)


def exists(path: AnyPath, *, follow: bool = True) -> bool:
    """Whether there is something at this path. With `follow` a link to nothing is nothing, else it is something."""
    try:
        (calls.stat if follow else calls.lstat)(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def is_file(path: AnyPath, *, follow: bool = True) -> bool:
    """Whether this is a regular file. What cannot be looked at is none."""
    return stat.S_ISREG(_mode(path, follow))


def is_directory(path: AnyPath, *, follow: bool = True) -> bool:
    """Whether this is a directory. What cannot be looked at is none."""
    return stat.S_ISDIR(_mode(path, follow))


def _mode(path: AnyPath, follow: bool) -> int:
    try:
        return (calls.stat if follow else calls.lstat)(path).st_mode
    except (OSError, ValueError):
        return 0
