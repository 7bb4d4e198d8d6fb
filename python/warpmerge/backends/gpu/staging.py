"""Between files or host memory and the device, through rings of page-locked buffers that are allocated once.

Inbound: a pool of threads fills the next buffer while the copy of the last one is under way. Outbound: a buffer is
copied from the device and handed to a writer thread, whose pool writes it and takes its digest, while the next one is
filled.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

from ... import _core
from ...tasks import FileSink, Sink

# Bytes of one buffer: some milliseconds of a PCIe link, so that the host's work per buffer does not show.
BUFFER_BYTES = 64 << 20
BUFFERS = 3  # in each direction: one being filled, one being copied, one in hand
IO_TILE = 4 << 20  # bytes of one read or write of one thread
POLL_MS = 100


def host_memory(threads: int) -> int:
    """Upper estimate of the bytes of host memory that the rings and the threads allocate."""
    return 2 * BUFFERS * BUFFER_BYTES + 2 * threads * IO_TILE


class Cancelled(Exception):
    """The merge was given up while something was still to be moved."""


class Move(NamedTuple):
    """`nbytes` at `offset` of the device's arena, which are those of a tensor from its byte `start` on."""

    tensor: Any  # inbound: a View; outbound: an Arrival
    start: int
    nbytes: int
    offset: int


def fill_buffers(moves: Sequence[Move], capacity: int) -> Iterator[list[Move]]:
    """Divides moves, which lie one behind the other in the arena, into lists of at most `capacity` bytes."""
    buffer: list[Move] = []
    for tensor, start, nbytes, offset in moves:
        while nbytes:
            first = buffer[0].offset if buffer else offset
            room = first + capacity - offset
            # Divided at whole 8-byte words and at the arena's alignment.
            fits = nbytes if nbytes <= room else room // 256 * 256
            if fits > 0:
                buffer.append(Move(tensor, start, fits, offset))
                start, nbytes, offset = start + fits, nbytes - fits, offset + fits
            if nbytes:
                yield buffer
                buffer = []
    if buffer:
        yield buffer


def wait_for(launch: Any, cancelled: Any) -> None:
    """Until all is done or, once `cancelled()`, dropped."""
    while not launch.wait(POLL_MS):
        if cancelled():
            launch.cancel()


class Buffer:
    def __init__(self, memory: Any) -> None:
        self.memory = memory
        self.event: Any = None  # after it the buffer may be used again


class Inbound:
    def __init__(
        self, runtime: Any, pool: Any, cancelled: Any, buffer_bytes: int = BUFFER_BYTES, buffers: int = BUFFERS
    ) -> None:
        self._runtime, self._pool, self._cancelled = runtime, pool, cancelled
        self._buffer_bytes, self._count = buffer_bytes, buffers
        self._buffers: list[Buffer] = []
        self._next = 0
        self._lock = threading.Lock()

    def bring(self, moves: Sequence[Move], arena: Any, stream: Any) -> None:
        """Produces the views of `moves` into `arena`. Raises CheckpointError for one that cannot be read."""
        with self._lock:
            self._bring(moves, arena, stream)

    def _bring(self, moves: Sequence[Move], arena: Any, stream: Any) -> None:
        for content in fill_buffers(moves, self._buffer_bytes):
            buffer = self._take()
            if self._cancelled():
                raise Cancelled
            first = content[0].offset
            items = [
                self._pool.copy(
                    m.tensor.native().from_byte(m.start),
                    m.nbytes,
                    IO_TILE,
                    _core.Output(0, memory=buffer.memory.address + m.offset - first),
                    digested=False,
                )
                for m in content
            ]
            wait_for(self._pool.submit(items, buffer), self._cancelled)
            stream.copy_in(arena, first, buffer.memory, 0, content[-1].offset + content[-1].nbytes - first)
            buffer.event = stream.record()

    def _take(self) -> Buffer:
        if len(self._buffers) < self._count:
            self._buffers.append(Buffer(self._runtime.pinned(self._buffer_bytes)))
            return self._buffers[-1]
        buffer = self._buffers[self._next]
        self._next = (self._next + 1) % self._count
        if buffer.event is not None:
            buffer.event.synchronize()
        return buffer


class Arrival:
    """A result on its way out: where it goes, and the digest of what has arrived."""

    def __init__(self, sink: Sink, nbytes: int) -> None:
        self.sink, self.nbytes = sink, nbytes
        self._digest = _core.digest_length(nbytes)

    def output(self, start: int) -> Any:
        sink = self.sink
        if isinstance(sink, FileSink):
            return _core.Output(0, file=sink.file, offset=sink.offset + start, background=sink.background)
        return _core.Output(0, memory=sink.address + start)

    @property
    def digested(self) -> bool:
        return isinstance(self.sink, FileSink)

    def add(self, partial: int) -> None:
        self._digest = (self._digest + partial) % 2**64

    @property
    def digest(self) -> int:
        return self._digest


class Outbound:
    def __init__(
        self, runtime: Any, pool: Any, cancelled: Any, buffer_bytes: int = BUFFER_BYTES, buffers: int = BUFFERS
    ) -> None:
        self._runtime, self._pool, self._cancelled = runtime, pool, cancelled
        self._buffer_bytes, self._left = buffer_bytes, buffers
        self._free: queue.SimpleQueue[Buffer] = queue.SimpleQueue()
        self._writer = ThreadPoolExecutor(1, "warpmerge-write")

    def take(self, moves: Sequence[Move], arena: Any, stream: Any) -> list[Future]:
        """Copies results out of `arena` once `stream` has made them; the futures end when they are in their sinks."""
        futures = []
        for content in fill_buffers(moves, self._buffer_bytes):
            buffer = self._take()
            first = content[0].offset
            try:
                stream.copy_out(buffer.memory, 0, arena, first, content[-1].offset + content[-1].nbytes - first)
                futures.append(self._writer.submit(self._write, buffer, stream.record(), content))
            except BaseException:
                self._free.put(buffer)
                raise
        return futures

    def _take(self) -> Buffer:
        if self._left and self._free.empty():
            buffer = Buffer(self._runtime.pinned(self._buffer_bytes))
            self._left -= 1
            return buffer
        return self._free.get()

    def _write(self, buffer: Buffer, copied: Any, content: list[Move]) -> None:
        try:
            copied.synchronize()
            if self._cancelled():
                raise Cancelled
            base = buffer.memory.address - content[0].offset
            items = [
                self._pool.copy(
                    _core.View(0, memory=base + m.offset),
                    m.nbytes,
                    IO_TILE,
                    m.tensor.output(m.start),
                    position=m.start,
                    digested=m.tensor.digested,
                )
                for m in content
            ]
            wait_for(self._pool.submit(items, buffer), self._cancelled)
            for m, item in zip(content, items, strict=True):
                m.tensor.add(item.partial_digest)
        finally:
            self._free.put(buffer)

    def close(self) -> None:
        self._writer.shutdown(wait=True, cancel_futures=True)
