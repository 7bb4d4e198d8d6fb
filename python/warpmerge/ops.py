"""What methods ask of backends: measurements and one combination per tensor, and the results of measurements.

Methods build these records, backends carry them out; neither knows the other. K is the number of models of the tensor
(the base not counted), n its number of elements. `relative` means that the inputs are deltas, x_k - base.
"""

from __future__ import annotations

from dataclasses import dataclass

NO_TIE_END = 2**63 - 1


@dataclass(frozen=True, slots=True)
class KeepAbove:
    """Keep elements whose magnitude key is above `threshold`, or equal to it at a flat index below `tie_end`.

    A magnitude key is the bit pattern of |d| in the compute type, read as an unsigned integer.
    """

    threshold: int
    tie_end: int = NO_TIE_END


@dataclass(frozen=True, slots=True)
class KeepDrawn:
    """Keep an element iff its 16 Philox bits under `key` (64 bits) are below `cut` (0 < cut < 65536)."""

    key: int
    cut: int


Keep = KeepAbove | KeepDrawn
KEEP_ALL = KeepAbove(0)
KEEP_NONE = KeepAbove(2**63)


@dataclass(frozen=True, slots=True)
class Select:
    """The `count`-th largest |delta| of each model (0: not asked) -> list of K `Selection`."""

    counts: tuple[int, ...]
    keep_all_ties: bool = False
    relative: bool = True


@dataclass(frozen=True, slots=True)
class Selection:
    """`above` elements lie above the threshold key, `ties` on it; those before `tie_end` complete the count."""

    threshold: int = 0
    tie_end: int = NO_TIE_END
    above: int = 0
    ties: int = 0

    def keep(self) -> KeepAbove:
        return KeepAbove(self.threshold, self.tie_end)


@dataclass(frozen=True, slots=True)
class Moments:
    """Sums, extremes and counts of each delta, and of what `keep` leaves of it -> list of K `MomentsResult`.

    `only_l1`: just `sum_abs` and `kept_abs`, which costs half; the rest is 0.
    """

    keep: tuple[Keep, ...]
    only_l1: bool = False
    relative: bool = True


@dataclass(frozen=True, slots=True)
class MomentsResult:
    sum_abs: float
    sum_sq: float
    kept_abs: float
    min: float
    max: float
    nonzero: int
    kept: int


@dataclass(frozen=True, slots=True)
class Gram:
    """Squared norms and pairwise squared distances of the K inputs -> `GramResult`."""

    relative: bool


@dataclass(frozen=True, slots=True)
class GramResult:
    """`norms_sq`: K numbers; `distances_sq[i][k]`: a symmetric K x K table, zero on its diagonal."""

    norms_sq: tuple[float, ...]
    distances_sq: tuple[tuple[float, ...], ...]

    @classmethod
    def unpack(cls, flat: list[float], models: int) -> GramResult:
        """From K norms followed by the distances of (0,1), (0,2), ..., (1,2), ..."""
        rest = iter(flat[models:])
        above = {(i, k): next(rest) for i in range(models) for k in range(i + 1, models)}
        table = [[above.get((min(i, k), max(i, k)), 0.0) for k in range(models)] for i in range(models)]
        return cls(tuple(flat[:models]), tuple(map(tuple, table)))


@dataclass(frozen=True, slots=True)
class WeightedSum:
    """y = sum_k c_k x_k, or base + sum_k c_k (x_k - base) if `relative`.

    `coefficients`: K numbers for each of the task's M outputs, one output after the other.
    `agree`: the coefficients are those of a mean, so an element on which all inputs agree is that input exactly.
    """

    coefficients: tuple[float, ...]
    relative: bool
    agree: bool = False


@dataclass(frozen=True, slots=True)
class Consensus:
    """base + lambda * (sum of agreeing value_k d_k) / (sum of agreeing divisor_k); see csrc/ops/consensus.h."""

    value: tuple[float, ...]
    keep: tuple[Keep, ...]
    ballot: tuple[float, ...] = ()
    divisor: tuple[float, ...] = ()
    lambda_: float = 1.0
    elect: bool = False
    relative: bool = True


@dataclass(frozen=True, slots=True)
class Copy:
    """Input number `index` as it is."""

    index: int = 0


Measure = Select | Moments | Gram
Combine = WeightedSum | Consensus | Copy
