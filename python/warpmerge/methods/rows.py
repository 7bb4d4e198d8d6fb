"""Geometry of many short vectors: the rows or columns of a tensor, each with norms, distances and angles of its own.

Arrays are float64 with an entry for each vector. Sums have one order, and functions are those of `math`, since numpy's
depend on the processor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

from ..formula import Expr, Formula, add_up, column, delta, equal, maximum, minimum, row, where
from ..ops import Apply, Rows, Whole
from .base import TensorInfo
from .geometry import NO_DIRECTION, SHORTEST, angle

BLOCK = 16  # rows that are added up as a tree, few enough for a cache
# Squares of float32 leave its range. Bounded by these they show it in their sum, which is exact enough between others.
LEAST_SQUARE, LARGEST_SQUARE = 2.0**-126, 2.0**127
SAFE = (2.0**-70, 2.0**120)


def each(function: Callable[[float], float], values: Any) -> Any:
    """The function of each entry."""
    import numpy as np

    flat = np.fromiter(map(function, values.ravel().tolist()), np.float64, values.size)
    return flat.reshape(values.shape)


def is_matrix(tensor: TensorInfo) -> bool:
    """Whether it has rows and columns: two dimensions or more, and elements."""
    return tensor.count > 0 and tensor.shape is not None and len(tensor.shape) > 1


@dataclass(frozen=True)
class Vectors:
    """The K vectors of each of n rows or columns: squared distances of the unit vectors along them, chords[i, k] with
    i < k, (n,) each; and where all K are the same.

    One that is zero, or too short beside the others, has no direction: it counts as at right angles to all others.
    """

    chords: dict[tuple[int, int], Any]
    same: Any

    @classmethod
    def of(cls, norms_sq: Any, distances_sq: dict[tuple[int, int], Any], exponents: Any = 0) -> Vectors:
        """From squares of vectors that were multiplied by 2^exponent first, each by its own."""
        import numpy as np

        lengths = np.sqrt(norms_sq)
        with np.errstate(all="ignore"):
            true = np.ldexp(lengths, -exponents)
            directed = true > SHORTEST * true.max(axis=0)
            same = np.ones(lengths.shape[1], bool)
            chords = {}
            for (i, k), distance in distances_sq.items():
                chord = (distance - (lengths[i] - lengths[k]) ** 2) / (lengths[i] * lengths[k])
                chords[i, k] = np.where(directed[i] & directed[k], np.clip(chord, 0.0, 4.0), 2.0)
                same &= (distance == 0) & (true[i] == true[k])
        return cls(chords, same)


def _pairs(models: int) -> list[tuple[int, int]]:
    return [(i, k) for i in range(models) for k in range(i + 1, models)]


def product(a: Expr, b: Expr, wide: bool) -> tuple[Expr, ...]:
    """a b rounded and, in float32, what that leaves out: float64 sums of both are as good as those of float64 products.

    Dekker 1971: the halves of a and b have exact products.
    """
    rounded = a * b
    if wide:
        return (rounded,)
    (a1, a2), (b1, b2) = _halves(a), _halves(b)
    return rounded, ((a1 * b1 - rounded) + (a1 * b2 + a2 * b1)) + a2 * b2


def _halves(v: Expr) -> tuple[Expr, Expr]:
    far = v * 4097
    high = far - (far - v)
    return high, v - high


def _square(v: Expr, lost: Expr | float, wide: bool) -> tuple[Expr, ...]:
    """(v + lost)^2 in the parts of `product`, the first one kept between the bounds."""
    rounded, *rest = product(v, v, wide)
    rounded = where(equal(v, 0), 0, minimum(maximum(rounded, LEAST_SQUARE), LARGEST_SQUARE))
    return rounded, *(part + v * lost * 2 for part in rest)


def summed(of: Sequence[tuple[Expr, ...]], tensor: TensorInfo) -> Generator[Rows, Any, Any]:
    """(len(of), rows): the sum of each tuple's parts."""
    sums = yield Rows(Formula(tuple(part for parts in of for part in parts), tensor.columns))
    return sums.reshape(len(of), -1, tensor.rows).sum(axis=1)


def _difference(a: Expr, b: Expr) -> tuple[Expr, Expr]:
    """a - b rounded, and what that leaves out (Knuth's sum of two)."""
    rounded = a - b
    back = rounded - a
    return rounded, (a - (rounded - back)) - (b + back)


def row_vectors(tensor: TensorInfo) -> Generator[Rows, Any, Vectors]:
    """Of the rows of the deltas: one read, or three where squares leave the range of float32."""
    import numpy as np

    pairs = _pairs(tensor.models)

    def squares(d: Sequence[Expr]) -> list[tuple[Expr, ...]]:
        distances = [_square(*_difference(d[i], d[k]), tensor.wide) for i, k in pairs]
        return [_square(v, 0, tensor.wide) for v in d] + distances

    d = [delta(k) for k in range(tensor.models)]
    sums = yield from summed(squares(d), tensor)
    norms_sq, exponents = sums[: tensor.models], 0
    if ((norms_sq > SAFE[1]) | ((norms_sq > 0) & (norms_sq < SAFE[0]))).any():
        largest = yield Rows(Formula(tuple(map(abs, d)), tensor.columns), largest=True)
        most = 1000 if tensor.wide else 120
        exponents = np.clip(-np.frexp(largest)[1], -most, most)
        factors = np.ldexp(1.0, exponents)
        d = [v * row(f) for v, f in zip(d, factors, strict=True)]
        sums = yield from summed(squares(d), tensor)
    distances = dict(zip(pairs, sums[tensor.models :], strict=True))
    return Vectors.of(sums[: tensor.models], distances, exponents)


def column_sums(tensors: Sequence[Any], rows: int, terms: Callable[..., Sequence[Any]]) -> Any:
    """Sums over the `rows` first dimension of tensors, (number of terms, n): blocks as trees, then one after the other.

    terms: new arrays, of some rows of each tensor in float64. What is not finite is 0, as in all measurements.
    """
    import numpy as np

    matrices = [t.cpu().numpy().reshape(rows, -1) for t in tensors]
    total: Any = 0.0
    for start in range(0, rows, BLOCK):
        parts = [m[start : start + BLOCK].astype(np.float64) for m in matrices]
        for part in parts:
            finite = np.isfinite(part)
            if not finite.all():
                part[~finite] = 0.0
        total = total + np.stack([_tree(term) for term in terms(*parts)])
    return total


def _tree(block: Any) -> Any:
    """The sum of the rows: the upper half is added to the lower one, which works in place, until one is left."""
    while len(block) > 1:
        upper = (len(block) + 1) // 2
        block[: len(block) - upper] += block[upper:]
        block = block[:upper]
    return block[0]


def column_vectors(tensor: TensorInfo) -> Generator[Whole, Any, Vectors]:
    """Of the vectors along the first dimension of the deltas."""
    models, pairs = tensor.models, _pairs(tensor.models)

    def squares(*d: Any) -> list[Any]:
        return [*(v * v for v in d), *((d[i] - d[k]) ** 2 for i, k in pairs)]

    sums = yield Whole(lambda tensors, base: column_sums(tensors, tensor.shape[0], squares))
    return Vectors.of(sums[:models], dict(zip(pairs, sums[models:], strict=True)))


def arcs(vectors: Vectors, t: float) -> tuple[Any, Any, Any]:
    """Coefficients of spherical interpolation between two vectors, and where they are those of a straight line."""
    import numpy as np

    theta = each(angle, vectors.chords[0, 1])
    sine = each(math.sin, theta)
    straight = vectors.same | (sine < NO_DIRECTION)
    with np.errstate(all="ignore"):
        first = np.where(straight, 1 - t, each(math.sin, (1 - t) * theta) / sine)
        second = np.where(straight, t, each(math.sin, t * theta) / sine)
    return first, second, straight


def interpolated(tensor: TensorInfo, vectors: Vectors, t: float, *, along_first: bool) -> Apply:
    """Spherical interpolation of rows, or of the vectors along the first dimension.

    On a straight line an element that is the same in both stays as it is.
    """
    place, columns = (column, tensor.count // tensor.shape[0]) if along_first else (row, tensor.columns)
    first, second, straight = arcs(vectors, t)
    a, b = delta(0), delta(1)
    merged = a * place(first) + b * place(second)
    kept = where(equal(a, b), a, merged)
    return Apply(Formula((where(place(straight.astype(float)), kept, merged),), columns), relative=True)


def stock(tensor: TensorInfo, vectors: Vectors) -> Apply:
    """Model stock with an angle for each row: see spherical.model_stock."""
    import numpy as np

    models = tensor.models
    cosines = [1 - chord / 2 for chord in vectors.chords.values()]
    cosine = sum(cosines) / len(cosines)
    cosine = np.where(1 + (models - 1) * cosine < NO_DIRECTION, 0.0, cosine)
    share = row(cosine / (1 + (models - 1) * cosine))
    merged = add_up([delta(k) * share for k in range(models)])
    return Apply(Formula((merged,), tensor.columns), relative=True)
