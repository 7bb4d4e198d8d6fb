"""The geometry of a few vectors from their norms and mutual distances: all that methods know of tensors of any size.

Angles come from distances between unit vectors and never from dot products, which cancel for models that are alike.
Sums are exactly rounded (math.fsum), so they depend neither on the order of the models nor on the version of Python.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from operator import mul

from ..errors import CheckpointError
from ..requests import Gram, GramResult
from .base import TensorInfo

Table = Sequence[Sequence[float]]

# Sums of unit vectors, and sines, below this are rounding: float64 knows squares to 2e-16, so lengths to 1e-8, and
# dividing by less than 1e-6 would leave float32 less than two digits.
NO_DIRECTION = 1e-6
LARGEST = 1e300
SHORTEST = 1e-30  # of the longest vector: to bring a shorter one to its length is a factor that float32 has not


def measure(tensor: TensorInfo, *, on_deltas: bool) -> Generator[Gram, GramResult, GramResult]:
    """Norms and distances. Raises CheckpointError if they overflow float64."""
    gram = yield Gram(on_deltas=on_deltas)
    if not max((*gram.norms_sq, *(max(row) for row in gram.distances_sq)), default=0.0) < LARGEST:
        raise CheckpointError(
            f"{tensor} has elements whose squares overflow float64; a method that measures needs them."
        )
    return gram


def all_equal(gram: GramResult) -> bool:
    return not any(map(any, gram.distances_sq))


def lengths(gram: GramResult) -> list[float]:
    """Norms of the vectors, 0 for those that are too short beside the others to have a direction."""
    norms = [math.sqrt(n) for n in gram.norms_sq]
    least = SHORTEST * max(norms)
    return [n if n > least else 0.0 for n in norms]


def chord_sq(norm0: float, norm1: float, distance_sq: float) -> float:
    """Squared distance of the unit vectors along two vectors that are not zero."""
    return min(4.0, max(0.0, distance_sq - (norm0 - norm1) ** 2) / (norm0 * norm1))


def chords_sq(gram: GramResult) -> list[list[float]]:
    """Squared distances of the unit vectors. One without a direction counts as at right angles to all others."""
    norms = lengths(gram)
    table = [[0.0] * len(norms) for _ in norms]
    for i, row in enumerate(gram.distances_sq):
        for k in range(i):
            both = norms[i] > 0 and norms[k] > 0
            table[i][k] = table[k][i] = chord_sq(norms[i], norms[k], row[k]) if both else 2.0
    return table


def angle(chord_squared: float) -> float:
    return 2 * math.asin(min(1.0, math.sqrt(chord_squared) / 2))


def times(table: Table, c: Sequence[float]) -> list[float]:
    return [math.fsum(map(mul, row, c)) for row in table]


def norm_of_units(c: Sequence[float], chords: Table) -> float:
    """|sum c_i u_i| of unit vectors: its square is (sum c_i)^2 - sum over pairs of c_i c_k |u_i - u_k|^2."""
    total = math.fsum(c)
    return math.sqrt(max(0.0, total * total - math.fsum(map(mul, c, times(chords, c))) / 2))


def chords_to(c: Sequence[float], chords: Table) -> list[float]:
    """Squared distances of sum c_i u_i, a unit vector as well, to each u_i."""
    excess = (math.fsum(c) - 1) ** 2
    return [min(4.0, max(0.0, d + excess)) for d in _relations(c, chords)]


def distances_to(c: Sequence[float], distances_sq: Table) -> list[float]:
    """Distances of the point sum c_i x_i to each x_i, where the c_i sum to 1."""
    return [math.sqrt(max(0.0, d)) for d in _relations(c, distances_sq)]


def _relations(c: Sequence[float], distances_sq: Table) -> list[float]:
    mean = times(distances_sq, c)
    spread = math.fsum(map(mul, c, mean)) / 2
    return [m - spread for m in mean]
