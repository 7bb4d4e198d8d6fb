"""The geometry of K vectors from their norms and mutual distances. A vector is a whole tensor of a model.

Angles come from distances between unit vectors, never from dot products: these cancel for models that are alike. Sums
are exactly rounded (math.fsum), so they depend neither on the order of the models nor on the version of Python. A sum
of the vectors is a list of K coefficients.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from operator import mul

from ..errors import CheckpointError
from ..requests import Gram, GramResult
from .base import TensorInfo

Table = Sequence[Sequence[float]]

# A shorter sum of unit vectors, or a smaller sine, is rounding: float64 knows squares to 2e-16, so lengths to 1e-8, and
# a division by less than 1e-6 would leave float32 less than two digits.
NO_DIRECTION = 1e-6
LARGEST = 1e300
SHORTEST = 1e-30  # share of the longest vector: for a shorter one the scale factor would overflow float32


def measure(tensor: TensorInfo, *, on_deltas: bool) -> Generator[Gram, GramResult, GramResult]:
    """Norms and distances of the inputs, or of the deltas. Raises CheckpointError if they overflow float64."""
    gram = yield Gram(on_deltas=on_deltas)
    if not max((*gram.norms_sq, *(max(row) for row in gram.distances_sq)), default=0.0) < LARGEST:
        raise CheckpointError(f"{tensor} has elements whose squares overflow float64, so its norms cannot be measured.")
    return gram


def all_equal(gram: GramResult) -> bool:
    """Whether all K tensors are the same."""
    return not any(map(any, gram.distances_sq))


def lengths(gram: GramResult) -> list[float]:
    """(K,) norms of the vectors; 0 for a vector that is too short to have a direction."""
    norms = [math.sqrt(n) for n in gram.norms_sq]
    least = SHORTEST * max(norms)
    return [n if n > least else 0.0 for n in norms]


def chord_sq(norm0: float, norm1: float, distance_sq: float) -> float:
    """Squared distance of two unit vectors, from the norms and the squared distance of vectors along them."""
    return min(4.0, max(0.0, distance_sq - (norm0 - norm1) ** 2) / (norm0 * norm1))


def chords_sq(gram: GramResult) -> list[list[float]]:
    """(K, K) squared distances of the unit vectors. A vector without a direction counts as orthogonal to all others."""
    norms = lengths(gram)
    table = [[0.0] * len(norms) for _ in norms]
    for i, row in enumerate(gram.distances_sq):
        for k in range(i):
            both = norms[i] > 0 and norms[k] > 0
            table[i][k] = table[k][i] = chord_sq(norms[i], norms[k], row[k]) if both else 2.0
    return table


def angle(chord_squared: float) -> float:
    """The angle of two unit vectors in radians, from their squared distance."""
    return 2 * math.asin(min(1.0, math.sqrt(chord_squared) / 2))


def times(table: Table, c: Sequence[float]) -> list[float]:
    """The table times a vector: (K, K) and (K,) to (K,)."""
    return [math.fsum(map(mul, row, c)) for row in table]


def norm_of_units(c: Sequence[float], chords: Table) -> float:
    """The norm of sum c_i u_i, for unit vectors u_i.

    Its square is (sum c_i)^2 - sum over pairs of c_i c_k |u_i - u_k|^2.
    """
    total = math.fsum(c)
    return math.sqrt(max(0.0, total * total - math.fsum(map(mul, c, times(chords, c))) / 2))


def chords_to(c: Sequence[float], chords: Table) -> list[float]:
    """(K,) squared distances from sum c_i u_i to each u_i. The sum must be a unit vector too."""
    excess = (math.fsum(c) - 1) ** 2
    return [min(4.0, max(0.0, d + excess)) for d in _relations(c, chords)]


def distances_to(c: Sequence[float], distances_sq: Table) -> list[float]:
    """(K,) distances from the point sum c_i x_i to each x_i. The c_i must sum to 1."""
    return [math.sqrt(max(0.0, d)) for d in _relations(c, distances_sq)]


def _relations(c: Sequence[float], distances_sq: Table) -> list[float]:
    mean = times(distances_sq, c)
    spread = math.fsum(map(mul, c, mean)) / 2
    return [m - spread for m in mean]
