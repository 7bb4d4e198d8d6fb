"""The geometry of many short vectors: the rows or columns of a tensor, each with norms and angles of its own.

Arrays are float64 with an entry for each vector. Sums have one order. Functions are those of `math`, because numpy's
depend on the processor. Cosines come from dot products in float64, exact to a few 1e-16. If vectors are alike, the
angle then has half the digits. That is enough, because the results depend on the square of the angle. In return one
read measures all rows; distances would take a second one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from ..expr.expression import add_up, column, equal, row, where
from ..expr.formula import Formula
from ..expr.library import deltas
from ..requests import Map, Over, Reduce
from .base import TensorInfo
from .geometry import NO_DIRECTION, SHORTEST

# Squares of float64 may overflow or underflow: a vector whose sum of squares is outside is scaled by 2^600 or 2^-600.
SAFE = (2.0**-900, 2.0**900)
SCALE = 600


def each(function: Callable[[float], float], values: Any) -> Any:
    """The function, applied to each entry of an array."""
    import numpy as np

    flat = np.fromiter(map(function, values.ravel().tolist()), np.float64, values.size)
    return flat.reshape(values.shape)


def is_matrix(tensor: TensorInfo) -> bool:
    """Whether the tensor has rows and columns: at least two dimensions, and at least one element."""
    return tensor.count > 0 and tensor.shape is not None and len(tensor.shape) > 1


@dataclass(frozen=True)
class Vectors:
    """The angles of K vectors, in each of n rows or columns.

    A vector that is zero, or too short beside the others, has no direction: it counts as orthogonal to all others.

    Attributes:
        cosines: (n,) cosines for each pair (i, k) of models, i < k.
        zero: (n,) booleans: whether all K vectors have no direction.
    """

    cosines: dict[tuple[int, int], Any]
    zero: Any

    @classmethod
    def of(cls, squares: Any, dots: dict[tuple[int, int], Any], exponents: Any) -> Vectors:
        """Makes it from (K, n) squared norms and (n,) dot products of vectors scaled by 2^exponents, (K, n)."""
        import numpy as np

        lengths = np.sqrt(squares)
        true = np.ldexp(lengths, exponents.min(axis=0) - exponents)  # in the scale of the longest
        directed = true > SHORTEST * true.max(axis=0)
        cosines = {}
        with np.errstate(all="ignore"):
            for (i, k), dot in dots.items():
                cosine = np.clip(dot / (lengths[i] * lengths[k]), -1.0, 1.0)
                cosines[i, k] = np.where(directed[i] & directed[k], cosine, 0.0)
        return cls(cosines, ~directed.any(axis=0))

    def cosine(self) -> Any:
        """(n,) mean cosine over the pairs."""
        return sum(self.cosines.values()) / len(self.cosines)


def vectors_of(tensor: TensorInfo, *, along_first: bool) -> Generator[Reduce, Any, Vectors]:
    """The angles between the models' rows, or between their vectors along the first dimension.

    One read. For inputs of float64 whose squares overflow or underflow, one more, with these vectors scaled.
    """
    import numpy as np

    models, columns = tensor.models, _columns(tensor, along_first)
    d = deltas(models)
    pairs = tuple((i, k) for i in range(models) for k in range(i + 1, models))
    products = (*((k, k) for k in range(models)), *pairs)
    over: Over = "column" if along_first else "row"
    sums = yield Reduce("sum", Formula(d, columns), over, "float64", products)
    exponents = np.zeros((models, sums.shape[1]), np.int64)
    if tensor.fp64:
        squares = sums[:models]
        exponents = np.where(squares > SAFE[1], -SCALE, np.where(squares < SAFE[0], SCALE, 0))
        if exponents.any():
            place = column if along_first else row
            scaled = [x * place(scale) for x, scale in zip(d, np.ldexp(1.0, exponents), strict=True)]
            sums = yield Reduce("sum", Formula(scaled, columns), over, "float64", products)
    return Vectors.of(sums[:models], dict(zip(pairs, sums[models:], strict=True)), exponents)


def _columns(tensor: TensorInfo, along_first: bool) -> int:
    """The length of a row of the matrix whose rows (or columns, along_first) are the vectors."""
    return tensor.count // tensor.shape[0] if along_first and tensor.shape else tensor.columns


def arcs(vectors: Vectors, t: float) -> tuple[Any, Any, Any]:
    """(n,) coefficients of both vectors for spherical interpolation, and where it is linear."""
    import numpy as np

    theta = 2 * each(math.asin, np.sqrt((1 - vectors.cosines[0, 1]) / 2))
    sine = each(math.sin, theta)
    straight = vectors.zero | (sine < NO_DIRECTION)
    with np.errstate(all="ignore"):
        first = np.where(straight, 1 - t, each(math.sin, (1 - t) * theta) / sine)
        second = np.where(straight, t, each(math.sin, t * theta) / sine)
    return first, second, straight


def interpolated(tensor: TensorInfo, vectors: Vectors, t: float, *, along_first: bool) -> Map:
    """Spherical interpolation of rows, or of vectors along the first dimension.

    Where it is linear, an element that is the same in both models keeps its bits.
    """
    columns = _columns(tensor, along_first)
    first, second, straight = arcs(vectors, t)
    place = column if along_first else row
    a, b = deltas(2)
    merged = a * place(first) + b * place(second)
    if straight.any():
        merged = where(place(straight.astype(float)), where(equal(a, b), a, merged), merged)
    return Map(Formula((merged,), columns), on_deltas=True, nan_of=None)


def stock(tensor: TensorInfo, vectors: Vectors) -> Map:
    """Model stock with one angle for each row; spherical.model_stock has the formula."""
    import numpy as np

    models = tensor.models
    cosine = vectors.cosine()
    cosine = np.where(1 + (models - 1) * cosine < NO_DIRECTION, 0.0, cosine)
    share = cosine / (1 + (models - 1) * cosine)
    of_row = row(share)
    merged = add_up([d * of_row for d in deltas(models)])
    return Map(Formula((merged,), tensor.columns), on_deltas=True, nan_of=None)
