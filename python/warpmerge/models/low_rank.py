"""Views whose elements are computed from those of other views.

    LowRank   W + s L R: the weight of a model under an adapter, with magnitudes (DoRA) if it has them
    Rounded   a view in another floating-point type

Both are produced range by range, as the views of `views.py` are. The sum over the rank is taken in order and in
float64; the result is rounded to float32 (a weight of float64 is not) and from there to the dtype of W. So every way to
a range gives the same bits.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from .. import _core
from ..dtypes import BFLOAT16, FLOAT64, DType
from .views import Range, View

LANES = 64  # sums of squares of a row are added up in so many lanes (csrc/cpu/kernels.h, kSquareLanes)
HELD: int = _core.HELD_FACTORS  # bytes of widened factors that are kept after their use


class Factors(NamedTuple):
    """What an adapter adds to a matrix W of rows x columns, row-major.

    Attributes:
        left: L, of rows x rank.
        right: R, of rank x columns.
        rank: of the product.
        transposed: whether both lie transposed.
        scale: s.
        magnitudes: the lengths that rows or columns of W + s L R get, or None.
        by_column: whether these are of columns.
    """

    left: View
    right: View
    rank: int
    transposed: bool
    scale: float
    magnitudes: View | None = None
    by_column: bool = False

    @property
    def views(self) -> list[View]:
        return [self.left, self.right, *([self.magnitudes] if self.magnitudes else [])]


class LowRank(View):
    """W + s L R. Each row or column of that gets the length that `magnitudes` gives it, if there are any.

    The factors are read with the first range and kept widened for a while. Magnitudes need another pass over W.
    """

    __slots__ = ("_native", "base", "columns", "count", "dtype", "factors", "nbytes", "read_bytes", "rows", "shape")

    def __init__(self, base: View, factors: Factors) -> None:
        self.base, self.factors, self.dtype, self.shape = base, factors, base.dtype, base.shape
        self.count, self.nbytes = base.count, base.nbytes
        self.rows, self.columns = (part.count // factors.rank for part in (factors.left, factors.right))
        passes = 1 if factors.magnitudes is None else 2
        self.read_bytes = passes * base.read_bytes + sum(view.read_bytes for view in factors.views)
        self._native: Any = None

    @property
    def device(self) -> None:
        return None

    @property
    def held_bytes(self) -> int:
        """Of the widened factors."""
        return 8 * self.factors.rank * (self.rows + -(-self.columns // 16) * 16)  # csrc/cpu/kernels.h, kPanelStep

    @property
    def kept_bytes(self) -> int:
        """What the view keeps once it has been read: what rows or columns are multiplied by."""
        return 0 if self.factors.magnitudes is None else 8 * self.factors.magnitudes.count

    def read(self, start: int = 0, count: int | None = None) -> bytes:
        import numpy as np

        length = self._length(start, count)
        if length == 0:
            return b""
        first, last = start // self.columns, -(-(start + length) // self.columns)
        found = np.empty((last - first, self.columns))
        at = start - first * self.columns
        found.reshape(-1)[at : at + length] = _widened(self.base.read(start, length), self.dtype)
        left, right, lengths = _numbers(self)
        with np.errstate(all="ignore"):
            found += self.factors.scale * _product(left[first:last], right)
            if lengths is not None:
                found *= lengths if self.factors.by_column else lengths[first:last, None]
            result = found.reshape(-1)[at : at + length].astype(np.float64 if self.dtype == FLOAT64 else np.float32)
            return _rounded(result, self.dtype)

    def ranges(self, start: int = 0, count: int | None = None) -> Iterator[Range]:
        yield from self.base.ranges(start, count)
        if start == 0:
            for view in self.factors.views:
                yield from view.ranges()
            if self.factors.magnitudes is not None:
                yield from self.base.ranges()

    def native(self) -> Any:
        if self._native is None:
            f = self.factors
            self._native = _core.View.low_rank(
                self.base.native(),
                f.left.native(),
                f.right.native(),
                self.rows,
                self.columns,
                f.rank,
                f.transposed,
                f.scale,
                None if f.magnitudes is None else f.magnitudes.native(),
                f.by_column,
                os.environ.get("WARPMERGE_ISA", ""),
            )
        return self._native

    def tensor(self) -> Any:
        raise TypeError("a file is on no device")


class Rounded(View):
    """The elements of a view of floating-point numbers in another such type."""

    __slots__ = ("_native", "count", "dtype", "nbytes", "read_bytes", "shape", "source")

    def __init__(self, source: View, dtype: DType) -> None:
        self.source, self.dtype, self.shape = source, dtype, source.shape
        self.count, self.read_bytes = source.count, source.read_bytes
        self.nbytes = self.count * dtype.itemsize
        self._native: Any = None

    @property
    def device(self) -> None:
        return None

    def read(self, start: int = 0, count: int | None = None) -> bytes:
        return _rounded(_widened(self.source.read(start, self._length(start, count)), self.source.dtype), self.dtype)

    def ranges(self, start: int = 0, count: int | None = None) -> Iterator[Range]:
        return self.source.ranges(start, count)

    def native(self) -> Any:
        if self._native is None:
            isa = os.environ.get("WARPMERGE_ISA", "")
            self._native = _core.View.rounded(self.source.native(), self.dtype.kernel_code, isa)
        return self._native

    def tensor(self) -> Any:
        raise TypeError("a file is on no device")


def memory(views: Sequence[LowRank], threads: int) -> int:
    """An upper bound on the bytes that these views hold while they are read: widened factors, and what DoRA needs."""
    sizes = [view.held_bytes for view in views]
    kept = sum(view.kept_bytes for view in views)
    most = max(sizes, default=0)  # while it is read it is there twice
    return min(sum(sizes), HELD + threads * most) + threads * most + kept


@functools.lru_cache(maxsize=2)
def _numbers(view: LowRank) -> tuple[Any, Any, Any]:
    """L, R and what rows or columns are multiplied by (None without magnitudes)."""
    import numpy as np

    f = view.factors
    left, right = _all(f.left), _all(f.right)
    if f.transposed:
        left = left.reshape(f.rank, view.rows).T
        right = right.reshape(view.columns, f.rank).T
    left, right = left.reshape(view.rows, f.rank), right.reshape(f.rank, view.columns)
    if f.magnitudes is None:
        return left, right, None
    with np.errstate(all="ignore"):
        weight = _all(view.base).reshape(view.rows, view.columns) + f.scale * _product(left, right)
        return left, right, _all(f.magnitudes) / np.sqrt(_squares(weight, f.by_column))


def _product(left: Any, right: Any) -> Any:
    import numpy as np

    total = np.zeros((left.shape[0], right.shape[1]))
    for k in range(left.shape[1]):
        total += left[:, k, None] * right[k]
    return total


def _squares(weight: Any, by_column: bool) -> Any:
    """The sum of the squares of each column or row."""
    import numpy as np

    if by_column:
        total = np.zeros(weight.shape[1])
        for row in weight:
            total += row * row
        return total
    lanes = np.zeros((weight.shape[0], LANES))
    for start in range(0, weight.shape[1], LANES):
        part = weight[:, start : start + LANES]
        lanes[:, : part.shape[1]] += part * part
    while lanes.shape[1] > 1:
        half = lanes.shape[1] // 2
        lanes = lanes[:, :half] + lanes[:, half:]
    return lanes[:, 0]


def _all(view: View) -> Any:
    return _widened(view.read(), view.dtype)


def _widened(data: bytes | memoryview, dtype: DType) -> Any:
    import numpy as np

    if dtype == BFLOAT16:
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4").astype(np.float64)
    return np.frombuffer(data, f"<f{dtype.itemsize}").astype(np.float64)


def _rounded(values: Any, dtype: DType) -> bytes:
    """Values of float32 or float64, rounded to nearest even; every NaN is the canonical one."""
    import numpy as np

    values = np.where(np.isnan(values), values.dtype.type(np.nan), values)
    if dtype != BFLOAT16:
        return bytes(values.astype(f"<f{dtype.itemsize}").tobytes())
    if values.dtype == np.float64:  # to float32 so that inexact values keep their last bit set: as one rounding
        nearest = values.astype(np.float32)
        large = np.abs(nearest.astype(np.float64)) > np.abs(values)
        odd = (nearest.view(np.uint32) - large.astype(np.uint32)) | 1
        values = np.where(nearest.astype(np.float64) != values, odd, nearest.view(np.uint32)).view(np.float32)
    bits = values.view(np.uint32).astype(np.uint64)
    found = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return bytes(np.where(np.isnan(values), 0x7FC0, found).astype("<u2").tobytes())
