"""The page cache as a condition of an experiment: fill it, empty it, and say how much of a file is in it.

Needs no privileges. What a hypervisor or a disk array caches underneath is out of reach, so a cold run is
only compared with a disk roof that was measured minutes before, in the same way.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

BLOCK = 8 << 20

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]


class NotControlled(RuntimeError):
    """The page cache did not do as it was told: a regime that cannot be had on this machine."""


def resident(path: Path) -> float:
    """The share of a file's pages that are in the page cache, by mincore(2)."""
    size = path.stat().st_size
    if size == 0:
        return 1.0
    pages = -(-size // mmap.PAGESIZE)
    vector = ctypes.create_string_buffer(pages)
    with open(path, "rb") as file:
        # Python's own mmap objects give no address for a read-only mapping.
        address = _libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
    if address in (None, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), "mmap failed", str(path))
    try:
        if _libc.mincore(address, size, vector) != 0:
            raise OSError(ctypes.get_errno(), "mincore failed", str(path))
    finally:
        _libc.munmap(address, size)
    return float((np.frombuffer(vector, np.uint8, pages) & 1).mean())


def warm(paths: Sequence[Path]) -> None:
    """Reads what is not in the page cache yet, and verifies that all of it is there together."""
    buffer = mmap.mmap(-1, BLOCK)
    for path in paths:
        if resident(path) == 1.0:
            continue
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    for path in paths:
        if (share := resident(path)) < 0.99:
            raise NotControlled(f"{path}: only {share:.0%} of it fits into the page cache")


def drop(paths: Sequence[Path], tolerance: float = 0.01) -> None:
    """Empties the page cache of these files and verifies it."""
    for path in paths:
        for _ in range(3):
            with open(path, "rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            share = resident(path)
            if share <= tolerance:
                break
        else:
            raise NotControlled(f"{path}: {share:.0%} of it stays cached: it is mapped, or on no disk")
