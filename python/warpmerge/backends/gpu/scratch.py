"""Device memory for tables, counters and partial results of one request, with a page-locked mirror of what crosses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .runtime import host_bytes
from .tables import ALIGN

LEAST = 1 << 20


class ScratchMemory:
    """`nbytes` of device memory, and as `host` (nbytes,) uint8 their mirror, if they have one."""

    def __init__(self, block: _Block, at: int, nbytes: int) -> None:
        self._block, self._at, self.nbytes = block, at, nbytes

    @property
    def address(self) -> int:
        return self._block.memory.address + self._at

    @property
    def host(self) -> np.ndarray:
        assert self._block.bytes is not None, "there is a mirror only where one was asked for"
        return self._block.bytes[self._at : self._at + self.nbytes]

    def view(self, start: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        nbytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        return self.host[start : start + nbytes].view(dtype).reshape(shape)

    def send(self, stream: Any) -> None:
        if self.nbytes:
            stream.copy_in(self._block.memory, self._at, self._block.mirror, self._at, self.nbytes)

    def fetch(self, stream: Any, start: int) -> None:
        """Copies the bytes from `start` on back to the mirror."""
        if self.nbytes > start:
            at = self._at + start
            stream.copy_out(self._block.mirror, at, self._block.memory, at, self.nbytes - start)

    def zero(self, stream: Any) -> None:
        if self.nbytes:
            stream.zero(self._block.memory, self._at, self.nbytes)


class _Block:
    def __init__(self, runtime: Any, nbytes: int, mirrored: bool, streams: Sequence[Any]) -> None:
        self.memory = runtime.alloc(nbytes, streams)
        self.mirror = runtime.pinned(nbytes) if mirrored else None
        self.bytes = host_bytes(self.mirror) if mirrored else None
        self.used = 0


class Scratch:
    """Memory is taken piecemeal and all given back at once; it is kept for the next request."""

    def __init__(self, runtime: Any, streams: Sequence[Any] = ()) -> None:
        """`streams`: those that will use it, besides the current one of the runtime."""
        self._runtime, self._streams = runtime, streams
        self._blocks: dict[bool, list[_Block]] = {True: [], False: []}

    def reset(self) -> None:
        """Only when the device is done with all that was taken."""
        for blocks in self._blocks.values():
            del blocks[:-1]  # the last one is the largest
            if blocks:
                blocks[0].used = 0

    def take(self, nbytes: int, mirrored: bool = False) -> ScratchMemory:
        blocks = self._blocks[mirrored]
        size = -(-nbytes // ALIGN) * ALIGN
        if not blocks or blocks[-1].used + size > blocks[-1].memory.nbytes:
            held = blocks[-1].memory.nbytes if blocks else 0
            blocks.append(_Block(self._runtime, max(size, 2 * held, LEAST), mirrored, self._streams))
        block = blocks[-1]
        memory = ScratchMemory(block, block.used, nbytes)
        block.used += size
        return memory
