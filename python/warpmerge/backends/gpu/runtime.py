"""What the host side needs of a device: memory, page-locked host memory, copies, streams and events.

A runtime has `name` ("cuda:0"), `memory() -> (free, total)`, `alloc(nbytes, streams)`, `pinned(nbytes)` and
`new_stream()`; what is allocated is for the current stream of its owner, and for `streams`.
Memory has `address` and `nbytes` and is freed with its last reference. A stream has `copy_in(device memory, offset,
host memory, offset, nbytes)`, `copy_out(host memory, offset, device memory, offset, nbytes)`, `zero(device memory,
offset, nbytes)`, `record() -> event`, `wait(event)` and `handle`; its operations run in order and none waits for the
host. An event has `synchronize()`. Allocation raises MemoryError. A runtime for tensors that are merged in place has
`current_stream()` as well, and `context()`, within which torch's calls are on its stream.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np


class NativeRuntime:
    """Over a `Device` of the native module (csrc/cuda/runtime.h)."""

    def __init__(self, device: Any) -> None:
        self.device = device
        self.name = f"cuda:{device.index}"

    def memory(self) -> tuple[int, int]:
        return self.device.memory()

    def alloc(self, nbytes: int, streams: Sequence[NativeStream] = ()) -> Any:
        return self.device.alloc(nbytes)

    def pinned(self, nbytes: int) -> Any:
        return self.device.pinned(nbytes)

    def new_stream(self) -> NativeStream:
        return NativeStream(self.device.stream())


class NativeStream:
    def __init__(self, stream: Any) -> None:
        self.native = stream
        self.handle = stream.handle
        self.record, self.wait = stream.record, stream.wait

    def copy_in(self, target: Any, at: int, source: Any, start: int, nbytes: int) -> None:
        self.native.copy_in(target.address + at, source.address + start, nbytes)

    def copy_out(self, target: Any, at: int, source: Any, start: int, nbytes: int) -> None:
        self.native.copy_out(target.address + at, source.address + start, nbytes)

    def zero(self, target: Any, at: int, nbytes: int) -> None:
        self.native.zero(target.address + at, nbytes)


def host_bytes(memory: Any) -> np.ndarray:
    """(nbytes,) uint8: host memory that the caller keeps alive."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * memory.nbytes).from_address(memory.address))
