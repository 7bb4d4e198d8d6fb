"""Views: what a model offers under a name is a dtype, a shape and a way to produce any range of the elements.

    FileRegion     a contiguous region of a file              direct: kernels read it as it lies
    Memory         contiguous memory of the host or a device  direct
    GatheredRows   rows of another view, by an index          produced range by range
    JoinedParts    other views, joined along an axis          produced range by range
    MeanRows       means of rows of several views             produced range by range (models/row_views.py)

`low_rank.py` has two more, whose elements are computed. Views nest. Nothing is materialised: whoever reads a view asks
for one range at a time, so that a tile of a permuted vocabulary needs the memory of a tile.

Each kind says the same thing in up to three ways, and all of them stand in its class. `read` is the definition, in
plain Python, and what the reference computes with. `native` is the description by which the compiled loader
(csrc/cpu/view.h) produces ranges in a worker's buffer or in a page-locked slot. `tensor` is for memory of a device.
`ranges` tells in advance what a pass reads from files.
"""

from __future__ import annotations

import ctypes
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from .. import _core
from ..dtypes import DType
from ..errors import CheckpointError

Range = tuple[Any, int, int]  # a _core.File, an offset, a number of bytes
GAP = 64 << 10  # bytes: nearer rows of a file are read ahead in one request, with what lies between


class View(ABC):
    """Elements of one dtype in row-major order. Ranges are counted in elements; a count of None: up to the end."""

    __slots__ = ()
    dtype: DType
    shape: tuple[int, ...]
    count: int  # of elements
    nbytes: int  # of the elements
    read_bytes: int  # that one pass over the elements reads

    @property
    @abstractmethod
    def device(self) -> str | None:
        """None for files and the host's memory; else the device that holds the elements, such as "cuda:0"."""

    @abstractmethod
    def read(self, start: int = 0, count: int | None = None) -> bytes | memoryview:
        """The bytes of the elements [start, start + count). Raises CheckpointError if they cannot be read."""

    @abstractmethod
    def ranges(self, start: int = 0, count: int | None = None) -> Iterator[Range]:
        """What a pass over [start, start + count) reads from files, as it lies there."""

    @abstractmethod
    def native(self) -> Any:
        """A `_core.View`, which is good for as long as this view is alive."""

    @abstractmethod
    def tensor(self) -> Any:
        """A torch tensor of the view's shape on `device`, for a view that has one."""

    def chunks(self, nbytes: int) -> Iterator[bytes | memoryview]:
        """All bytes in order, about so many at a time."""
        step = max(1, nbytes // self.dtype.itemsize)
        return (self.read(start, min(step, self.count - start)) for start in range(0, self.count, step))

    def _length(self, start: int, count: int | None) -> int:
        return self.count - start if count is None else count


@dataclass(slots=True, eq=False)
class FileRegion(View):
    """Elements from the byte `offset` of a file (a `_core.File`) on."""

    dtype: DType
    shape: tuple[int, ...]
    file: Any
    offset: int
    count: int = field(init=False, repr=False)
    nbytes: int = field(init=False, repr=False)
    read_bytes: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.count = math.prod(self.shape)  # kept: a plan asks for sizes a dozen times
        self.nbytes = self.read_bytes = self.count * self.dtype.itemsize

    @property
    def device(self) -> None:
        return None

    def read(self, start: int = 0, count: int | None = None) -> bytes:
        size = self.dtype.itemsize
        found: bytes = self.file.read(self.offset + start * size, self._length(start, count) * size)
        return found

    def ranges(self, start: int = 0, count: int | None = None) -> Iterator[Range]:
        size = self.dtype.itemsize
        nbytes = self._length(start, count) * size
        if nbytes:
            yield self.file, self.offset + start * size, nbytes

    def native(self) -> Any:
        return _core.View(self.dtype.code or 0, file=self.file, offset=self.offset)

    def tensor(self) -> Any:
        raise TypeError("a file is on no device")


@dataclass(slots=True, eq=False)
class Memory(View):
    """Elements from `address` on. `owner` keeps them alive; on a device it is a torch tensor there."""

    dtype: DType
    shape: tuple[int, ...]
    address: int
    owner: Any = None
    device: str | None = None
    count: int = field(init=False, repr=False)
    nbytes: int = field(init=False, repr=False)
    read_bytes: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.count = math.prod(self.shape)  # kept: a plan asks for sizes a dozen times
        self.nbytes = self.read_bytes = self.count * self.dtype.itemsize

    def read(self, start: int = 0, count: int | None = None) -> bytes | memoryview:
        size = self.dtype.itemsize
        nbytes = self._length(start, count) * size
        if nbytes == 0:
            return b""
        if self.device is not None:
            import torch

            flat = self.owner.reshape(-1).view(torch.uint8)
            return memoryview(flat[start * size : start * size + nbytes].cpu().numpy())
        return memoryview((ctypes.c_uint8 * nbytes).from_address(self.address + start * size)).cast("B")

    def ranges(self, start: int = 0, count: int | None = None) -> Iterator[Range]:
        return iter(())

    def native(self) -> Any:
        return _core.View(self.dtype.code or 0, memory=self.address)

    def tensor(self) -> Any:
        return self.owner.detach().reshape(self.shape)


class GatheredRows(View):
    """Row `index[i]` of `source` as row i: a row is what lies under one index of the first axis.

    Args:
        source: of the shape (rows, ...).
        index: (n,) integers in [0, rows), in any order, any number of times.
        name: the tensor's, for messages.

    The shape is (n, ...). Raises CheckpointError for an index that cannot be used.
    """

    __slots__ = ("_native", "count", "dtype", "index", "nbytes", "read_bytes", "row", "shape", "source")

    def __init__(self, source: View, index: Any, name: str) -> None:
        import numpy as np

        found = np.asarray(index)
        if found.ndim != 1 or (found.size and found.dtype.kind not in "iu"):
            raise CheckpointError(
                f"tensor '{name}': rows are gathered by a list of integers, not by {found.dtype} of the shape "
                f"{list(found.shape)}."
            )
        if not source.shape:
            raise CheckpointError(f"tensor '{name}': a scalar has no rows to gather.")
        rows = source.shape[0]
        bad = np.flatnonzero((found < 0) | (found >= rows))
        if bad.size:
            raise CheckpointError(
                f"tensor '{name}': index {int(bad[0])} asks for row {int(found[bad[0]])}, but there are {rows} rows."
            )
        self.source, self.dtype = source, source.dtype
        self.index = np.ascontiguousarray(found, np.int64)
        self.shape = (len(found), *source.shape[1:])
        self.row = math.prod(source.shape[1:])  # elements
        self.count = math.prod(self.shape)  # kept: a plan asks for sizes a dozen times
        self.nbytes = self.read_bytes = self.count * self.dtype.itemsize
        self._native: Any = None

    @property
    def device(self) -> str | None:
        return self.source.device

    def read(self, start: int = 0, count: int | None = None) -> bytes:
        end = start + self._length(start, count)
        if start == end:
            return b""
        first, last = start // self.row, -(-end // self.row)
        rows = b"".join(self.source.read(int(i) * self.row, self.row) for i in self.index[first:last])
        size = self.dtype.itemsize
        return rows[(start - first * self.row) * size : (end - first * self.row) * size]

    def ranges(self, start: int = 0, count: int | None = None) -> Iterator[Range]:
        end = start + self._length(start, count)
        return row_ranges(
            self.source, self.index[start // self.row : -(-end // self.row)] if start < end else (), self.row
        )

    def native(self) -> Any:
        if self._native is None:
            self._native = _core.View.gathered(self.source.native(), self.index, self.row * self.dtype.itemsize)
        return self._native

    def tensor(self) -> Any:
        import torch

        source = self.source.tensor()
        return source.index_select(0, torch.from_numpy(self.index).to(source.device))


def row_ranges(source: View, index: Any, row: int) -> Iterator[Range]:
    """What these rows, of `row` elements each, read from files. They come in the order of the file: a disk gives
    neighbouring rows faster than rows in any other order."""
    import numpy as np

    if not len(index):
        return
    rows = index if (np.diff(index) > 0).all() else np.unique(index)
    near = max(1, GAP // (row * source.dtype.itemsize))
    for run in np.split(rows, np.flatnonzero(np.diff(rows) > near) + 1):
        yield from source.ranges(int(run[0]) * row, int(run[-1] - run[0] + 1) * row)


class JoinedParts(View):
    """Views of one dtype, joined along `axis`: their shapes differ there only.

    Args:
        parts: at least one view.
        axis: from 0 to the last; negative ones count from the end.
        name: the tensor's, for messages.

    Raises CheckpointError for parts that do not join.
    """

    __slots__ = ("_native", "axis", "count", "dtype", "nbytes", "parts", "read_bytes", "shape", "starts")

    def __init__(self, parts: Sequence[View], axis: int, name: str) -> None:
        if not parts:
            raise CheckpointError(f"tensor '{name}': there are no parts to join.")
        first = parts[0]
        axes = len(first.shape)
        if not -axes <= axis < axes:
            raise CheckpointError(f"tensor '{name}': a part of the shape {list(first.shape)} has no axis {axis}.")
        self.axis = axis % axes
        for part in parts[1:]:
            if part.dtype != first.dtype:
                raise CheckpointError(f"tensor '{name}': parts of {first.dtype} and {part.dtype} do not join.")
            if len(part.shape) != axes or self._others(part.shape) != self._others(first.shape):
                raise CheckpointError(
                    f"tensor '{name}': parts of the shapes {list(first.shape)} and {list(part.shape)} do not join "
                    f"along axis {self.axis}."
                )
            if part.device != first.device:
                places = [found.device or "the host" for found in (first, part)]
                raise CheckpointError(f"tensor '{name}': a part is on {places[0]}, another on {places[1]}.")
        self.parts, self.dtype = tuple(parts), first.dtype
        length = sum(part.shape[self.axis] for part in parts)
        self.shape = (*first.shape[: self.axis], length, *first.shape[self.axis + 1 :])
        pieces = (math.prod(part.shape[self.axis :]) for part in parts)
        # A stripe is what lies under one index of the axes before `axis`: a piece of each part, from these places on.
        self.starts = (0, *itertools.accumulate(pieces))
        self.count = math.prod(self.shape)  # kept: a plan asks for sizes a dozen times
        self.nbytes = self.count * self.dtype.itemsize
        self.read_bytes = sum(part.read_bytes for part in parts)
        self._native: Any = None

    def _others(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape[: self.axis], *shape[self.axis + 1 :])

    @property
    def device(self) -> str | None:
        return self.parts[0].device

    def read(self, start: int = 0, count: int | None = None) -> bytes:
        end, stripe = start + self._length(start, count), self.starts[-1]
        if start == end:
            return b""
        found = []
        for number in range(start // stripe, -(-end // stripe)):
            for part, (first, last) in zip(self.parts, itertools.pairwise(self.starts), strict=True):
                low, high = max(start - number * stripe, first), min(end - number * stripe, last)
                if low < high:
                    found.append(part.read(number * (last - first) + low - first, high - low))
        return b"".join(found)

    def ranges(self, start: int = 0, count: int | None = None) -> Iterator[Range]:
        end, stripe = start + self._length(start, count), self.starts[-1]
        if start == end:
            return
        for part, (first, last) in zip(self.parts, itertools.pairwise(self.starts), strict=True):
            # Of the part, what lies before the first and before the last of these elements.
            before = [at // stripe * (last - first) + min(max(at % stripe, first), last) - first for at in (start, end)]
            yield from part.ranges(before[0], before[1] - before[0])

    def native(self) -> Any:
        if self._native is None:
            starts = [start * self.dtype.itemsize for start in self.starts]
            self._native = _core.View.joined([part.native() for part in self.parts], starts)
        return self._native

    def tensor(self) -> Any:
        import torch

        return torch.cat([part.tensor() for part in self.parts], self.axis)
