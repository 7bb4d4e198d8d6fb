"""Geometry of many short vectors: the rows or columns of a tensor, each with norms, distances and angles of its own.

Arrays are float64 with an entry for each vector. Sums have one order, and functions are those of `math`, since numpy's
depend on the processor.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

from ..formula import Expr, Formula, Given, add_up, column, delta, equal, maximum, minimum, row, where
from ..ops import Apply, Rows, Whole
from .base import TensorInfo
from .geometry import NO_DIRECTION, SHORTEST, angle

BLOCK = 1 << 15  # elements that are worked on at a time, few enough for a cache
# Squares of float32 leave its range. Bounded by these they show it in their sum, which is exact enough between others.
LEAST_SQUARE, LARGEST_SQUARE = 2.0**-126, 2.0**127
SAFE = (2.0**-70, 2.0**120)
OPPOSED = 0.5  # 1 + (K - 1) cos below this: near a pole errors of squares grow by K over its square


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

    def cosine(self) -> Any:
        """The mean over the pairs."""
        cosines = [1 - chord / 2 for chord in self.chords.values()]
        return sum(cosines) / len(cosines)


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


def summed(sums: Any, parts: int, tensor: TensorInfo) -> Any:
    """(number of tuples, rows) from the sums of the values of tuples of so many `parts`."""
    return sums.reshape(-1, parts, tensor.rows).sum(axis=1)


def _difference(a: Expr, b: Expr) -> tuple[Expr, Expr]:
    """a - b rounded, and what that leaves out (Knuth's sum of two)."""
    rounded = a - b
    back = rounded - a
    return rounded, (a - (rounded - back)) - (b + back)


def _exact_square(v: Expr, lost: Expr | None = None) -> tuple[Expr, Expr]:
    """(v + lost)^2 in the parts of `product`."""
    rounded, rest = product(v, v, wide=False)
    return rounded, rest if lost is None else rest + v * lost * 2


@functools.lru_cache
def _squares(models: int, scaled: bool, exact: bool) -> Formula:
    """Of the deltas, times given(k) of their row if `scaled`, between the bounds; and of their differences.

    exact: each in two parts.
    """
    d = [delta(k) * row(Given(k)) if scaled else delta(k) for k in range(models)]
    pairs = _pairs(models)
    squares = [_exact_square(v) if exact else (v * v,) for v in d]
    # The smaller of a magnitude and a bound is above 0 where the magnitude is, even if its square is not.
    least = [minimum(abs(v), LEAST_SQUARE) for v in d]
    norms = [(minimum(maximum(v, low), LARGEST_SQUARE), *rest) for (v, *rest), low in zip(squares, least, strict=True)]
    if exact:
        apart = [_exact_square(*_difference(d[i], d[k])) for i, k in pairs]
    else:
        apart = [(v * v,) for v in [d[i] - d[k] for i, k in pairs]]
    return Formula(tuple(part for parts in (*norms, *apart) for part in parts))


@functools.lru_cache
def _magnitudes(models: int) -> Formula:
    return Formula(tuple(abs(delta(k)) for k in range(models)))


def row_vectors(tensor: TensorInfo) -> Generator[Rows, Any, Vectors]:
    """Of the rows of the deltas: one read. Two more where squares leave the range of float32.

    And one more where rows are opposed so that float32 products would show: they are right to seven digits, which
    other angles are well served by.
    """
    import numpy as np

    models, columns, factors, exponents = tensor.models, tensor.columns, (), 0

    def measured(exact: bool) -> Generator[Rows, Any, tuple[Any, Any]]:
        found = yield Rows(_squares(models, bool(factors), exact).using(*factors, columns=columns))
        sums = summed(found, 1 + exact, tensor)
        return sums[:models], dict(zip(_pairs(models), sums[models:], strict=True))

    squares = yield from measured(exact=False)
    norms_sq = squares[0]
    if ((norms_sq > SAFE[1]) | ((norms_sq > 0) & (norms_sq < SAFE[0]))).any():
        largest = yield Rows(_magnitudes(models).using(columns=columns), largest=True)
        most = 1000 if tensor.wide else 120
        exponents = np.clip(-np.frexp(largest)[1], -most, most)
        factors = tuple(np.ldexp(1.0, exponents))
        squares = yield from measured(exact=False)
    vectors = Vectors.of(*squares, exponents)
    if not tensor.wide and vectors.chords and (1 + (models - 1) * vectors.cosine() < OPPOSED).any():
        vectors = Vectors.of(*(yield from measured(exact=True)), exponents)
    return vectors


def column_sums(tensors: Sequence[Any], rows: int, factors: Callable[..., Sequence[tuple[Any, Any]]]) -> Any:
    """Sums of products over the `rows` first dimension of tensors, (number of products, n): row by row in blocks.

    factors: the pairs to multiply, made of some rows of each tensor in float64. What is not finite is 0, as in all
    measurements.
    """
    import numpy as np

    matrices = [t.cpu().numpy().reshape(rows, -1) for t in tensors]
    columns = matrices[0].shape[1]
    step = max(1, BLOCK // columns)
    parts = [np.empty((step, columns)) for _ in matrices]
    product = np.empty((step, columns))
    total: Any = 0.0
    for start in range(0, rows, step):
        count = min(step, rows - start)
        for part, matrix in zip(parts, matrices, strict=True):
            part[:count] = matrix[start : start + count]
            finite = np.isfinite(part[:count])
            if not finite.all():
                part[:count][~finite] = 0.0
        pairs = factors(*(part[:count] for part in parts))
        total = total + np.stack([np.multiply(a, b, out=product[:count]).sum(axis=0) for a, b in pairs])
    return total


def column_vectors(tensor: TensorInfo) -> Generator[Whole, Any, Vectors]:
    """Of the vectors along the first dimension of the deltas."""
    models, pairs = tensor.models, _pairs(tensor.models)

    def squares(*d: Any) -> list[tuple[Any, Any]]:
        return [(v, v) for v in (*d, *(d[i] - d[k] for i, k in pairs))]

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


@functools.lru_cache
def _interpolated(along_first: bool, any_straight: bool) -> Formula:
    place = column if along_first else row
    a, b = delta(0), delta(1)
    merged = a * place(Given(0)) + b * place(Given(1))
    if any_straight:
        merged = where(place(Given(2)), where(equal(a, b), a, merged), merged)
    return Formula((merged,))


def interpolated(tensor: TensorInfo, vectors: Vectors, t: float, *, along_first: bool) -> Apply:
    """Spherical interpolation of rows, or of the vectors along the first dimension.

    On a straight line an element that is the same in both stays as it is.
    """
    columns = tensor.count // tensor.shape[0] if along_first else tensor.columns
    first, second, straight = arcs(vectors, t)
    formula = _interpolated(along_first, bool(straight.any()))
    return Apply(formula.using(first, second, straight.astype(float), columns=columns), relative=True)


@functools.lru_cache
def _sum_of_shares(models: int) -> Formula:
    share = row(Given(0))
    return Formula((add_up([delta(k) * share for k in range(models)]),))


def stock(tensor: TensorInfo, vectors: Vectors) -> Apply:
    """Model stock with an angle for each row: see spherical.model_stock."""
    import numpy as np

    models = tensor.models
    cosine = vectors.cosine()
    cosine = np.where(1 + (models - 1) * cosine < NO_DIRECTION, 0.0, cosine)
    share = cosine / (1 + (models - 1) * cosine)
    return Apply(_sum_of_shares(models).using(share, columns=tensor.columns), relative=True)
