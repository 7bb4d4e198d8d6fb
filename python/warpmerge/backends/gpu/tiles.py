"""What lies in device memory together: how tensors are divided into segments, and segments laid out in tiles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...errors import DeviceError
from ...tasks import TensorTask
from ...units import show_size
from .staging import Move
from .tables import ALIGN, BLOCK, CHUNK, SegmentRow


@dataclass(frozen=True, slots=True)
class SegmentEnds:
    """Where a segment may end: at multiples of `unit` and, if `within`, at multiples of BLOCK from the last one."""

    unit: int
    within: bool = False

    def most(self, first: int, end: int, fits: int) -> int:
        """The largest number of elements from `first` on, at most `fits`, that a segment may have; perhaps 0."""
        stop = first + fits
        if stop >= end:
            return end - first
        at = stop // self.unit * self.unit
        if at <= first and self.within:
            start = first // self.unit * self.unit
            at = start + (stop - start) // BLOCK * BLOCK
        return max(0, at - first)

    def least(self, first: int, end: int) -> int:
        """The smallest number of elements that a segment may have, or all."""
        start = first // self.unit * self.unit
        at = start + self.unit
        if self.within:
            at = min(at, start + ((first - start) // BLOCK + 1) * BLOCK)
        return min(at, end) - first


CHUNK_ENDS = SegmentEnds(CHUNK)
EndsOf = Callable[[TensorTask], SegmentEnds]


def anywhere(task: TensorTask) -> SegmentEnds:
    return CHUNK_ENDS


class Segment:
    """Elements [first, first + count) of a task, and where they are."""

    def __init__(self, task: TensorTask, first: int, count: int) -> None:
        self.task, self.first, self.count = task, first, count
        self.inputs: list[int] = []  # addresses
        self.base = 0
        self.outputs: list[int] = []

    def row(self, tensor: int, block: int) -> SegmentRow:
        return SegmentRow(
            self.count,
            self.first,
            tensor,
            block,
            self.task.info.count,
            self.base,
            tuple(self.inputs),
            tuple(self.outputs),
        )


class Tile:
    """Segments that lie in device memory together: what has to be moved in, and what out."""

    def __init__(self) -> None:
        self.segments: list[Segment] = []
        self.inward: list[Move] = []
        self.outward: list[tuple[Segment, int, int, int]] = []  # segment, output, bytes, offset
        self.nbytes = 0

    def reserve(self, nbytes: int) -> int:
        offset = self.nbytes
        self.nbytes += -(-nbytes // ALIGN) * ALIGN
        return offset

    def move(self, start: int, arena: int) -> None:
        """To the arena's byte `start` from its first one; addresses, until now offsets, begin at `arena`."""
        self.inward = [m._replace(offset=m.offset + start) for m in self.inward]
        self.outward = [(segment, output, nbytes, offset + start) for segment, output, nbytes, offset in self.outward]
        for segment in self.segments:
            segment.inputs = [arena + start + offset for offset in segment.inputs]
            segment.base = arena + start + segment.base if segment.task.base else 0
            segment.outputs = [arena + start + offset for offset in segment.outputs]


def bytes_per_element(task: TensorTask) -> int:
    read = sum(b.dtype.itemsize for b in task.inputs) + (task.base.dtype.itemsize if task.base else 0)
    return read + task.out_dtype.itemsize * len(task.sinks)


def footprint(task: TensorTask, count: int) -> int:
    """Upper bound of the arena bytes that `count` elements of a task take."""
    return bytes_per_element(task) * count + ALIGN * (len(task.group.inputs) + 1 + len(task.sinks))


def divide(tasks: Sequence[TensorTask], capacity: int, shares: float = 1, ends_of: EndsOf = anywhere) -> list[Tile]:
    """Divides tasks into tiles of at most `capacity` bytes; segments end between chunks or where `ends_of` says.

    Raises DeviceError if not even one chunk fits; `shares` of such tiles make the device memory that it speaks of.
    """
    tiles: list[list[tuple[TensorTask, int, int]]] = [[]]
    room = capacity
    for task in tasks:
        first = 0
        while first < task.info.count:
            left = task.info.count - first
            fits = left
            if footprint(task, left) > room:
                fits = max(0, room - footprint(task, 0)) // bytes_per_element(task)
                fits = ends_of(task).most(first, task.info.count, fits)
            if fits == 0:
                if not tiles[-1]:
                    # What is shown is rounded to three digits; it must do for who passes it on.
                    least = 1.006 * (footprint(task, ends_of(task).least(first, task.info.count)) + ALIGN)
                    raise DeviceError(
                        f"{task.info} needs {show_size(shares * least)} of device memory to be worked on in tiles; "
                        f"{show_size(shares * capacity)} may be used. Raise --device-memory, or use --device cpu."
                    )
                tiles.append([])
                room = capacity
                continue
            tiles[-1].append((task, first, fits))
            room -= footprint(task, fits)
            first += fits
    return [lay_out(ranges) for ranges in tiles if ranges]


def lay_out(ranges: Sequence[tuple[TensorTask, int, int]]) -> Tile:
    """Inputs first, outputs behind them, so that either moves in few large copies."""
    tile = Tile()
    for task, first, count in ranges:
        segment = Segment(task, first, count)
        tile.segments.append(segment)
        for view in [*task.inputs, *([task.base] if task.base else [])]:
            size = view.dtype.itemsize
            offset = tile.reserve(count * size)
            tile.inward.append(Move(view, first * size, count * size, offset))
            segment.inputs.append(offset)
        if task.base:
            segment.base = segment.inputs.pop()
    for segment in tile.segments:
        nbytes = segment.count * segment.task.out_dtype.itemsize
        for output in range(len(segment.task.sinks)):
            offset = tile.reserve(nbytes)
            segment.outputs.append(offset)
            tile.outward.append((segment, output, nbytes, offset))
    return tile
