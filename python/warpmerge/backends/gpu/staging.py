"""Between files or host memory and the device, through rings of page-locked slots that are allocated once.

Inbound: a pool of threads reads the next slot while the copy of the last one is under way. Outbound: a slot is copied
from the device and handed to a writer thread, whose pool writes it and takes its digest, while the next one is filled.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

from ... import _core
from ...tasks import FileSink, Sink

# Bytes of one slot: some milliseconds of a PCIe link, so that the host's work per slot does not show.
SLOT = 64 << 20
SLOTS = 3  # in each direction: one being filled, one being copied, one in hand
IO_TILE = 4 << 20  # bytes of one read or write of one thread
POLL_MS = 100


def host_memory(threads: int) -> int:
    """Upper estimate of the bytes of host memory that the rings and the threads allocate."""
    return 2 * SLOTS * SLOT + 2 * threads * IO_TILE


class Cancelled(Exception):
    """The merge was given up while something was still to be moved."""


class Move(NamedTuple):
    """`nbytes` at `offset` of the device's arena, which are those of a tensor from its byte `start` on."""

    tensor: Any  # inbound: a View; outbound: an Arrival
    start: int
    nbytes: int
    offset: int


def fill_slots(moves: Sequence[Move], capacity: int) -> Iterator[list[Move]]:
    """Cuts moves, which lie one behind the other in the arena, into lists that each span at most `capacity` bytes."""
    slot: list[Move] = []
    for tensor, start, nbytes, offset in moves:
        while nbytes:
            first = slot[0].offset if slot else offset
            room = first + capacity - offset
            # A cut keeps to whole 8-byte words and to the arena's alignment.
            part = nbytes if nbytes <= room else room // 256 * 256
            if part > 0:
                slot.append(Move(tensor, start, part, offset))
                start, nbytes, offset = start + part, nbytes - part, offset + part
            if nbytes:
                yield slot
                slot = []
    if slot:
        yield slot


def wait_for(launch: Any, cancelled: Any) -> None:
    """Until all is done or, once `cancelled()`, dropped: when interrupted too, as memory and files are still in use."""
    try:
        while not launch.wait(POLL_MS):
            if cancelled():
                launch.cancel()
    except BaseException:
        drop(launch)
        raise


def drop(launch: Any) -> None:
    """Gives up what has not started and waits for what has."""
    launch.cancel()
    with contextlib.suppress(OSError):
        while not launch.wait(POLL_MS):
            pass


class Slot:
    def __init__(self, memory: Any) -> None:
        self.memory = memory
        self.event: Any = None  # after it the slot may be used again


class Inbound:
    def __init__(self, runtime: Any, pool: Any, cancelled: Any, slot_bytes: int = SLOT, slots: int = SLOTS) -> None:
        self._runtime, self._pool, self._cancelled = runtime, pool, cancelled
        self._slot_bytes, self._count = slot_bytes, slots
        self._slots: list[Slot] = []
        self._next = 0
        self._lock = threading.Lock()

    def bring(self, moves: Sequence[Move], arena: Any, stream: Any) -> None:
        """Produces the views of `moves` into `arena`. Raises OSError (EFAULT) for one that cannot be read."""
        with self._lock:
            self._bring(moves, arena, stream)

    def _bring(self, moves: Sequence[Move], arena: Any, stream: Any) -> None:
        for part in fill_slots(moves, self._slot_bytes):
            slot = self._take()
            if self._cancelled():
                raise Cancelled
            first = part[0].offset
            items = [
                self._pool.copy(
                    m.tensor.native().from_byte(m.start),
                    m.nbytes,
                    IO_TILE,
                    _core.Output(0, memory=slot.memory.address + m.offset - first),
                    digested=False,
                )
                for m in part
            ]
            wait_for(self._pool.submit(items), self._cancelled)
            stream.copy_in(arena, first, slot.memory, 0, part[-1].offset + part[-1].nbytes - first)
            slot.event = stream.record()

    def _take(self) -> Slot:
        if len(self._slots) < self._count:
            self._slots.append(Slot(self._runtime.pinned(self._slot_bytes)))
            return self._slots[-1]
        slot = self._slots[self._next]
        self._next = (self._next + 1) % self._count
        if slot.event is not None:
            slot.event.synchronize()
        return slot


class Arrival:
    """A result on its way out: where it goes, and the digest of what has arrived."""

    def __init__(self, sink: Sink, nbytes: int) -> None:
        self.sink, self.nbytes = sink, nbytes
        self._digest = _core.digest_length(nbytes)

    def output(self, start: int) -> Any:
        sink = self.sink
        if isinstance(sink, FileSink):
            return _core.Output(0, fd=sink.fd, offset=sink.offset + start, background=sink.background)
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
    def __init__(self, runtime: Any, pool: Any, cancelled: Any, slot_bytes: int = SLOT, slots: int = SLOTS) -> None:
        self._runtime, self._pool, self._cancelled = runtime, pool, cancelled
        self._slot_bytes, self._left = slot_bytes, slots
        self._free: queue.SimpleQueue[Slot] = queue.SimpleQueue()
        self._writer = ThreadPoolExecutor(1, "warpmerge-write")

    def take(self, moves: Sequence[Move], arena: Any, stream: Any) -> list[Future]:
        """Copies results out of `arena` once `stream` has made them; the futures end when they are in their sinks."""
        futures = []
        for part in fill_slots(moves, self._slot_bytes):
            slot = self._take()
            first = part[0].offset
            try:
                stream.copy_out(slot.memory, 0, arena, first, part[-1].offset + part[-1].nbytes - first)
                futures.append(self._writer.submit(self._write, slot, stream.record(), part))
            except BaseException:
                self._free.put(slot)
                raise
        return futures

    def _take(self) -> Slot:
        if self._left and self._free.empty():
            slot = Slot(self._runtime.pinned(self._slot_bytes))
            self._left -= 1
            return slot
        return self._free.get()

    def _write(self, slot: Slot, copied: Any, part: list[Move]) -> None:
        try:
            copied.synchronize()
            if self._cancelled():
                raise Cancelled
            base = slot.memory.address - part[0].offset
            items = [
                self._pool.copy(
                    _core.View(0, memory=base + m.offset),
                    m.nbytes,
                    IO_TILE,
                    m.tensor.output(m.start),
                    position=m.start,
                    digested=m.tensor.digested,
                )
                for m in part
            ]
            wait_for(self._pool.submit(items), self._cancelled)
            for m, item in zip(part, items, strict=True):
                m.tensor.add(item.partial_digest)
        finally:
            self._free.put(slot)

    def close(self) -> None:
        self._writer.shutdown(wait=True, cancel_futures=True)
