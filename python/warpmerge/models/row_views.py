"""Views of rows that several views give: means of rows, and the mean of all rows of a view.

They follow models/views.py: `read` defines them in numpy, `native` is what kernels load.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from .. import _core
from ..dtypes import BFLOAT16, FLOAT16, FLOAT32, FLOAT64, DType
from ..errors import CheckpointError
from .views import Range, View, row_ranges

_NUMPY = {FLOAT16: "<f2", FLOAT32: "<f4", FLOAT64: "<f8"}


class MeanRows(View):
    """Row i is the mean of the rows that the sources have for it.

    Args:
        sources: K views of floating-point types, of the shapes (rows, ...) that differ in `rows` only.
        index: (K, n) integers: of each source its row for row i; -1: it has none. A row of no source is zero.
        dtype: of the result. A single row is converted; a mean is taken in float64 and rounded once.
        name: the tensor's, for messages.

    The shape is (n, ...). Raises CheckpointError for sources or an index that cannot be used.
    """

    __slots__ = ("_native", "count", "dtype", "index", "nbytes", "read_bytes", "row", "shape", "sources")

    def __init__(self, sources: Sequence[View], index: Any, dtype: DType, name: str) -> None:
        import numpy as np

        self.index = np.ascontiguousarray(index, np.int64)
        self.sources, self.dtype = tuple(sources), dtype
        first = sources[0]
        for source, rows in zip(sources, self.index, strict=True):
            if not source.shape or source.shape[1:] != first.shape[1:]:
                raise CheckpointError(
                    f"tensor '{name}': the shapes {list(first.shape)} and {list(source.shape)} have no common rows."
                )
            if rows.size and rows.max() >= source.shape[0]:
                raise CheckpointError(
                    f"tensor '{name}': row {int(rows.max())} is needed, but there are {source.shape[0]} rows."
                )
        self.shape = (self.index.shape[1], *first.shape[1:])
        self.row = math.prod(first.shape[1:])  # elements
        self.count = math.prod(self.shape)  # kept: a plan asks for sizes a dozen times
        self.nbytes = self.count * dtype.itemsize
        self.read_bytes = sum(
            int((rows >= 0).sum()) * self.row * source.dtype.itemsize
            for source, rows in zip(sources, self.index, strict=True)
        )
        self._native: Any = None

    @property
    def device(self) -> None:
        return None

    def read(self, start: int = 0, count: int | None = None) -> bytes:
        import numpy as np

        end = start + self._length(start, count)
        if start == end:
            return b""
        first, last = start // self.row, -(-end // self.row)
        total, found = np.full((last - first, self.row), -0.0), np.zeros(last - first, np.int64)  # -0 + x is x
        copied = {}
        for source, rows in zip(self.sources, self.index[:, first:last], strict=True):
            for place in np.flatnonzero(rows >= 0):
                data = source.read(int(rows[place]) * self.row, self.row)
                with np.errstate(invalid="ignore"):
                    total[place] += values(data, source.dtype)
                found[place] += 1
                if source.dtype is self.dtype:
                    copied[place] = data
        total[found == 0] = 0
        made = np.frombuffer(bytearray(rounded(total / np.maximum(found, 1)[:, None], self.dtype)), np.uint8)
        made = made.reshape(last - first, -1)
        for place, data in copied.items():
            if found[place] == 1:
                made[place] = np.frombuffer(data, np.uint8)
        size = self.dtype.itemsize
        return bytes(made.reshape(-1)[(start - first * self.row) * size : (end - first * self.row) * size])

    def ranges(self, start: int = 0, count: int | None = None) -> Iterator[Range]:
        end = start + self._length(start, count)
        if start == end:
            return
        for source, rows in zip(self.sources, self.index[:, start // self.row : -(-end // self.row)], strict=True):
            yield from row_ranges(source, rows[rows >= 0], self.row)

    def native(self) -> Any:
        if self._native is None:
            sources = [source.native() for source in self.sources]
            self._native = _core.View.mean_rows(self.dtype.kernel_code, sources, self.index, self.row)
        return self._native

    def tensor(self) -> Any:
        raise TypeError("means of rows are on no device")


class RowsMean(View):
    """One row: the mean of all rows of a view, summed in float64 and rounded once. It is computed when it is first
    asked for, not while a merge is planned.

    Args:
        source: of the shape (rows, ...) with at least one row.
    """

    __slots__ = ("_bytes", "count", "dtype", "nbytes", "read_bytes", "shape", "source")

    def __init__(self, source: View) -> None:
        self.source, self.dtype, self.shape = source, source.dtype, (1, *source.shape[1:])
        self.count = math.prod(self.shape)
        self.nbytes = self.read_bytes = self.count * self.dtype.itemsize
        self._bytes: Any = None

    @property
    def device(self) -> None:
        return None

    def _made(self) -> Any:
        import numpy as np

        if self._bytes is None:
            rows = self.source.shape[0]
            total = np.array(self.source.native().sum_rows(rows, self.count))
            self._bytes = np.frombuffer(rounded(total / rows, self.dtype), np.uint8)
        return self._bytes

    def read(self, start: int = 0, count: int | None = None) -> memoryview:
        size = self.dtype.itemsize
        return memoryview(self._made())[start * size : (start + self._length(start, count)) * size]

    def ranges(self, start: int = 0, count: int | None = None) -> Iterator[Range]:
        return iter(())

    def native(self) -> Any:
        return _core.View(self.dtype.kernel_code, memory=self._made().ctypes.data)

    def tensor(self) -> Any:
        raise TypeError("a mean of rows is on no device")


def values(data: bytes | memoryview, dtype: DType) -> Any:
    """The elements that bytes hold, as an array of a type that numpy has."""
    import numpy as np

    if dtype is BFLOAT16:
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
    return np.frombuffer(data, _NUMPY[dtype])


def rounded(numbers: Any, dtype: DType) -> bytes:
    """float64 numbers rounded once, to nearest even; every NaN becomes the canonical one."""
    import numpy as np

    with np.errstate(over="ignore", invalid="ignore"):
        if dtype is not BFLOAT16:
            found = numbers.astype(_NUMPY[dtype])
            found[np.isnan(numbers)] = np.nan
            return bytes(found.tobytes())
        nearest = numbers.astype("<f4")
    # To float32 such that the rounding to 16 bits is the correct one: what is inexact ends in a 1 bit.
    bits, back = nearest.view("<u4").astype(np.int64), nearest.astype(np.float64)
    odd = (bits - (np.abs(back) > np.abs(numbers))) | 1
    bits = np.where(back == numbers, bits, odd)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return bytes(np.where(np.isnan(numbers), 0x7FC0, bits).astype("<u2").tobytes())
