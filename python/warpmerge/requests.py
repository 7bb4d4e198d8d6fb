"""What methods ask of backends: measurements and one combination per tensor, and the results of measurements.

Methods build these records, backends carry them out; neither knows the other. K is the number of models of the tensor
(the base not counted), n its number of elements. `on_deltas` means that the inputs are deltas, x_k - base.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .expr import library
from .expr.expression import Expr
from .expr.formula import Formula
from .expr.masks import KEEP_ALL, KEEP_NONE, NO_TIE_END, Mask, RandomMask, RankMask, TopKMask

__all__ = [
    "KEEP_ALL",
    "KEEP_NONE",
    "NO_TIE_END",
    "Combine",
    "Copy",
    "ElectAndSum",
    "Formula",
    "Gram",
    "GramResult",
    "Histogram",
    "HistogramResult",
    "KthLargest",
    "Map",
    "Mask",
    "Measure",
    "Moments",
    "MomentsResult",
    "Products",
    "RandomMask",
    "RankMask",
    "Rows",
    "Selection",
    "TensorFunction",
    "TopKMask",
    "WeightedSum",
]


@dataclass(frozen=True, slots=True)
class KthLargest:
    """The `count`-th largest |delta| of each model (0: not asked) -> list of K `Selection`.

    `of`: of the values of a formula instead, which then take the place of the K deltas. One that is not finite counts
    as 0.
    """

    counts: tuple[int, ...]
    keep_all_ties: bool = False
    on_deltas: bool = True
    of: Formula | None = None


@dataclass(frozen=True, slots=True)
class Selection:
    """`above` elements lie above the threshold key, `ties` on it; those before `tie_end` complete the count."""

    threshold: int = 0
    tie_end: int = NO_TIE_END
    above: int = 0
    ties: int = 0

    def keep(self) -> TopKMask:
        return TopKMask(self.threshold, self.tie_end)

    def magnitude(self, fp64: bool) -> float:
        """The threshold as a number. `fp64`: of keys of float64, else of float32."""
        key = self.threshold.to_bytes(8 if fp64 else 4, "little")
        return struct.unpack("<d" if fp64 else "<f", key)[0]


@dataclass(frozen=True, slots=True)
class Moments:
    """Sums, extremes and counts of each delta, and of what `keep` leaves of it -> list of K `MomentsResult`.

    `only_l1`: just `sum_abs` and `kept_abs`, which costs half; the rest is 0. `of`: as in KthLargest.
    """

    keep: tuple[Mask, ...]
    only_l1: bool = False
    on_deltas: bool = True
    of: Formula | None = None


@dataclass(frozen=True, slots=True)
class MomentsResult:
    sum_abs: float
    sum_sq: float
    kept_abs: float
    min: float
    max: float
    nonzero: int
    kept: int
    sum_of_means: float = 0.0  # of a whole model: the mean magnitudes of its tensors, added up


@dataclass(frozen=True, slots=True)
class Gram:
    """Squared norms and pairwise squared distances of the K inputs -> `GramResult`."""

    on_deltas: bool


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
class Rows:
    """Per row of the tensor and value of the formula, the sum or the largest -> (values, rows) float64.

    Sums are taken in float64, in the order of csrc/ops/rows.h. A value that is not finite counts as 0.
    """

    of: Formula
    largest: bool = False
    on_deltas: bool = True


@dataclass(frozen=True, slots=True)
class Products:
    """Sums of products of pairs of a formula's values, per row or per column -> (pairs, rows or columns) float64.

    `of`: its `columns` is the length of a row. `pairs`: places of two of its values each; (i, i) is a square.
    Values are taken to float64, where products of float32 are exact; one that is not finite counts as 0. Products and
    sums are float64, in the order of csrc/ops/products.h. A sum that is NaN, where products overflow, is canonical.
    """

    of: Formula
    pairs: tuple[tuple[int, int], ...]
    per_column: bool = False
    on_deltas: bool = True


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many magnitude keys of each delta lie above an interval (low, high), and in bins of it -> `HistogramResult`s.

    `of`: as in KthLargest.
    """

    intervals: tuple[tuple[int, int], ...]
    on_deltas: bool = True
    of: Formula | None = None


@dataclass(frozen=True, slots=True)
class HistogramResult:
    """`bins`: (b,) int64, bin i counts the keys from low + (i << shift) on; the backend chooses b.

    `only`: (b,) int64, the key in each bin that is not empty, -1 if there are several; None: not known.
    """

    above: int
    shift: int
    bins: Any
    only: Any = None


@dataclass(frozen=True, slots=True)
class TensorFunction:
    """Any function of whole tensors, in torch -> what it returns; or a combination: base + result, or the result alone.

    function(tensors, base): the K deltas (inputs if not `on_deltas`) and the base (None if not `on_deltas`) in the
    compute type and the tensor's shape, behind the K its auxiliary tensors in theirs. The function must not
    change the base.
    It runs where the tensors are; memory is bounded by the tensor, not by a tile, and what it computes need not have
    the same bits on every device. `combines` is set by the engine.
    """

    function: Callable[..., Any]
    on_deltas: bool = True
    combines: bool = False


INPUTS = "inputs"


@dataclass(frozen=True, slots=True)
class Map:
    """base + value, or just the value if not `on_deltas`: one output per value of the formula.

    `agree`: if the first `agree` inputs are bit-identical, the output is that input; for formulas that are means.
    `nan_of`: under `nonfinite: propagate` the outputs are NaN where this is NaN: the sum of the inputs that the formula
    reads (INPUTS), another expression, or nothing but the values themselves (None: for what drops elements, and for
    sums, from which NaN comes out anyway).
    """

    formula: Formula
    on_deltas: bool
    agree: int = 0
    nan_of: Expr | str | None = INPUTS

    def propagating(self) -> Map:
        """The request for `nonfinite: propagate`: comparisons and masks cannot hide NaN."""
        formula = self.formula
        of = library.sum_of_inputs(formula.values) if isinstance(self.nan_of, str) else self.nan_of
        if of is None:
            return self
        guarded = Formula(library.with_nan(formula.values, of), formula.columns, formula.first)
        return Map(guarded, self.on_deltas, self.agree, None)


@dataclass(frozen=True, slots=True)
class WeightedSum:
    """y = sum_k c_k x_k, or base + sum_k c_k (x_k - base) if `on_deltas`.

    `coefficients`: K numbers for each of the task's M outputs, one output after the other.
    `agree`: the coefficients are those of a mean, so an element on which all inputs agree is that input exactly.
    """

    coefficients: tuple[float, ...]
    on_deltas: bool
    agree: bool = False

    def as_map(self, models: int) -> Map:
        """The same for K = `models` inputs, as expressions: what a backend without a kernel for it carries out."""
        values = library.weighted_sum(library.deltas(models), self.coefficients)
        return Map(Formula(values), self.on_deltas, models if self.agree else 0, None)


@dataclass(frozen=True, slots=True)
class ElectAndSum:
    """base + lambda * (sum of agreeing value_k d_k) / (sum of agreeing divisor_k): see library.elect_and_sum.

    `keep`: the mask of each delta. `vote`, `divisor`: for an election only; one without a divisor does not divide.
    """

    value: tuple[float, ...]
    keep: tuple[Mask, ...]
    vote: tuple[float, ...] = ()
    divisor: tuple[float, ...] = ()
    lambda_: float = 1.0
    elect: bool = False
    on_deltas: bool = True

    def as_map(self, models: int) -> Map:
        """The same for K = `models` inputs, as expressions: what a backend without a kernel for it carries out."""
        kept = library.all_masked(library.deltas(models), self.keep)
        return Map(Formula((self.merged(kept),)), self.on_deltas, nan_of=None)

    def merged(self, kept: Sequence[Expr]) -> Expr:
        """The merged delta of any deltas, whatever masked them."""
        return library.elect_and_sum(kept, self.value, self.vote, self.divisor, self.lambda_, elect=self.elect)


@dataclass(frozen=True, slots=True)
class Copy:
    """Input number `index` as it is."""

    index: int = 0


Measure = KthLargest | Moments | Gram | Rows | Products | Histogram | TensorFunction
Combine = WeightedSum | ElectAndSum | Map | TensorFunction | Copy
