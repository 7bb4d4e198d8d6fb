"""What lies in device memory together: parts of tensors, where tensors may be cut, and how loads are packed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...errors import DeviceError
from ...tasks import TensorTask
from ...units import show_size
from .staging import Move
from .tables import ALIGN, BLOCK, CHUNK, Segment


@dataclass(frozen=True, slots=True)
class Cut:
    """Where a tensor may be cut: at multiples of `unit` and, if `within`, at multiples of BLOCK from the last one."""

    unit: int
    within: bool = False

    def most(self, first: int, end: int, fits: int) -> int:
        """The largest number of elements from `first` on, at most `fits`, that may be cut off; perhaps 0."""
        stop = first + fits
        if stop >= end:
            return end - first
        at = stop // self.unit * self.unit
        if at <= first and self.within:
            start = first // self.unit * self.unit
            at = start + (stop - start) // BLOCK * BLOCK
        return max(0, at - first)

    def least(self, first: int, end: int) -> int:
        """The smallest number of elements that may be cut off, or all."""
        start = first // self.unit * self.unit
        at = start + self.unit
        if self.within:
            at = min(at, start + ((first - start) // BLOCK + 1) * BLOCK)
        return min(at, end) - first


CHUNKS = Cut(CHUNK)
Cuts = Callable[[TensorTask], Cut]


def anywhere(task: TensorTask) -> Cut:
    return CHUNKS


class Part:
    """Elements [first, first + count) of a task, and where they are."""

    def __init__(self, task: TensorTask, first: int, count: int) -> None:
        self.task, self.first, self.count = task, first, count
        self.inputs: list[int] = []  # addresses
        self.base = 0
        self.outputs: list[int] = []

    def segment(self, slot: int, block: int) -> Segment:
        return Segment(
            self.count,
            self.first,
            slot,
            block,
            self.task.info.count,
            self.base,
            tuple(self.inputs),
            tuple(self.outputs),
        )


class Load:
    """Parts that lie in device memory together: what has to be moved in, and what out."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.inward: list[Move] = []
        self.outward: list[tuple[Part, int, int, int]] = []  # part, output, bytes, offset
        self.nbytes = 0

    def reserve(self, nbytes: int) -> int:
        offset = self.nbytes
        self.nbytes += -(-nbytes // ALIGN) * ALIGN
        return offset

    def move(self, start: int, arena: int) -> None:
        """To the arena's byte `start` from its first one; addresses of parts, until now offsets, begin at `arena`."""
        self.inward = [m._replace(offset=m.offset + start) for m in self.inward]
        self.outward = [(part, output, nbytes, offset + start) for part, output, nbytes, offset in self.outward]
        for part in self.parts:
            part.inputs = [arena + start + offset for offset in part.inputs]
            part.base = arena + start + part.base if part.task.base else 0
            part.outputs = [arena + start + offset for offset in part.outputs]


def bytes_per_element(task: TensorTask) -> int:
    read = sum(b.dtype.itemsize for b in task.inputs) + (task.base.dtype.itemsize if task.base else 0)
    return read + task.out_dtype.itemsize * len(task.sinks)


def footprint(task: TensorTask, count: int) -> int:
    """Upper bound of the arena bytes that `count` elements of a task take."""
    return bytes_per_element(task) * count + ALIGN * (len(task.inputs) + 1 + len(task.sinks))


def pack(tasks: Sequence[TensorTask], capacity: int, shares: float = 1, cuts: Cuts = anywhere) -> list[Load]:
    """Divides tasks into loads of at most `capacity` bytes, cutting tensors between chunks or where `cuts` says.

    Raises DeviceError if not even one chunk fits; `shares` of such loads make the device memory that it speaks of.
    """
    loads: list[list[tuple[TensorTask, int, int]]] = [[]]
    room = capacity
    for task in tasks:
        first = 0
        while first < task.info.count:
            left = task.info.count - first
            fits = left
            if footprint(task, left) > room:
                fits = max(0, room - footprint(task, 0)) // bytes_per_element(task)
                fits = cuts(task).most(first, task.info.count, fits)
            if fits == 0:
                if not loads[-1]:
                    # What is shown is rounded to three digits; it must do for who passes it on.
                    least = 1.006 * (footprint(task, cuts(task).least(first, task.info.count)) + ALIGN)
                    raise DeviceError(
                        f"{task.info} needs {show_size(shares * least)} of device memory to be worked on in tiles; "
                        f"{show_size(shares * capacity)} may be used. Raise --device-memory, or use --device cpu."
                    )
                loads.append([])
                room = capacity
                continue
            loads[-1].append((task, first, fits))
            room -= footprint(task, fits)
            first += fits
    return [lay_out(parts) for parts in loads if parts]


def lay_out(parts: Sequence[tuple[TensorTask, int, int]]) -> Load:
    """Inputs first, outputs behind them, so that either moves in few large copies."""
    load = Load()
    for task, first, count in parts:
        part = Part(task, first, count)
        load.parts.append(part)
        for view in [*task.inputs, *([task.base] if task.base else [])]:
            size = view.dtype.itemsize
            offset = load.reserve(count * size)
            load.inward.append(Move(view, first * size, count * size, offset))
            part.inputs.append(offset)
        if task.base:
            part.base = part.inputs.pop()
    for part in load.parts:
        nbytes = part.count * part.task.out_dtype.itemsize
        for output in range(len(part.task.sinks)):
            offset = load.reserve(nbytes)
            part.outputs.append(offset)
            load.outward.append((part, output, nbytes, offset))
    return load
