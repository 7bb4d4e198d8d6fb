"""The roofs that a merge is compared with: `cat+cp` ("just copying") and the disk.

cat+cp reads every input byte once (8 MiB positioned reads, one thread) and then runs the system's `cp` on
files of as many bytes as the output has. `cp` does not sync; a second form ends with a sync of the copy.
"""

from __future__ import annotations

import mmap
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from . import pagecache
from .pagecache import BLOCK


@dataclass(frozen=True)
class CatCp:
    """Seconds of the three steps."""

    read: float
    copy: float
    sync: float

    @property
    def total(self) -> float:
        return self.read + self.copy + self.sync


def cat_cp(inputs: Sequence[Path], copied: Sequence[Path], folder: Path, *, sync: bool) -> CatCp:
    """Reads `inputs`, copies `copied` (as many bytes as the merge writes) into `folder`."""
    command = _cp(folder)  # before the clock starts: it may try out a copy
    start = time.perf_counter()
    read_once(inputs)
    read = time.perf_counter()
    subprocess.run([*command, "--", *map(str, copied), str(folder)], check=True)
    copy = time.perf_counter()
    if sync:
        for path in (*(folder / source.name for source in copied), folder):
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
    return CatCp(read - start, copy - read, time.perf_counter() - copy)


def read_once(paths: Sequence[Path]) -> int:
    """`cat`: positioned reads of 8 MiB by this thread into one buffer. Returns the bytes read."""
    buffer = mmap.mmap(-1, BLOCK)
    total = 0
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        offset = 0
        while count := os.preadv(descriptor, [buffer], offset):
            offset += count
        os.close(descriptor)
        total += offset
    return total


@cache
def _cp(folder: Path) -> tuple[str, ...]:
    """`cp`, told to copy bytes where the file system would share blocks instead: that writes nothing."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        source = Path(scratch) / "a"
        source.write_bytes(b"x" * 4096)
        share = ["cp", "--reflink=always", str(source), str(source.with_name("b"))]
        shares = subprocess.run(share, stderr=subprocess.DEVNULL).returncode == 0
    return ("cp", "--reflink=never") if shares else ("cp",)


@dataclass(frozen=True)
class DiskRead:
    """One way to read files from the disk as fast as possible."""

    direct: bool
    threads: int

    def __str__(self) -> str:
        return f"{'O_DIRECT' if self.direct else 'buffered'}, {self.threads} threads"

    def seconds(self, paths: Sequence[Path]) -> float:
        """Reads the files from cold, all bytes once."""
        pagecache.drop(paths)
        flags = os.O_RDONLY | (os.O_DIRECT if self.direct else 0)
        descriptors = [(os.open(path, flags), path.stat().st_size) for path in paths]
        blocks = iter([(fd, offset) for fd, size in descriptors for offset in range(0, size, BLOCK)])
        errors: list[OSError] = []
        counts: list[int] = []

        def work() -> None:
            buffer = mmap.mmap(-1, BLOCK)  # page-aligned, as O_DIRECT demands
            try:
                for descriptor, offset in blocks:  # a list iterator hands out each item once
                    counts.append(os.preadv(descriptor, [buffer], offset))
            except OSError as error:
                errors.append(error)

        workers = [threading.Thread(target=work) for _ in range(self.threads)]
        start = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        seconds = time.perf_counter() - start
        for descriptor, _ in descriptors:
            os.close(descriptor)
        if errors:
            raise errors[0]
        assert sum(counts) == sum(size for _, size in descriptors), "the disk returned less than it has"
        return seconds


def fastest_disk_read(paths: Sequence[Path]) -> DiskRead:
    """Tries each way once. Which wins depends on the storage: O_DIRECT by 1.4 on one virtual disk."""
    times: dict[DiskRead, float] = {}
    for way in (DiskRead(direct, threads) for direct in (True, False) for threads in (2, 4)):
        try:
            times[way] = way.seconds(paths)
        except OSError:  # no O_DIRECT on this file system
            continue
    return min(times, key=times.__getitem__)
