"""What methods ask of backends: measurements and one combination per tensor, and the results of measurements.

Methods build these records, backends carry them out; neither knows the other. K is the number of models of the tensor
(the base not counted), n its number of elements. `on_deltas` means that the inputs are deltas, x_k - base.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from .errors import MergeError
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
    "HistogramResult",
    "KthLargest",
    "Map",
    "Mask",
    "Measure",
    "RandomMask",
    "RankMask",
    "Reduce",
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


class Selection(NamedTuple):
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
        return float(struct.unpack("<d" if fp64 else "<f", key)[0])


Kind = Literal["sum", "max", "min", "count", "histogram"]
Over = Literal["tensor", "row", "column"]
Accumulator = Literal["compute", "float64"]


@dataclass(frozen=True, slots=True)
class Reduce:
    """Folds the values of expressions over a tensor, or over each of its rows or columns.

    kind: `sum`; `max` or `min`; `count` of the elements whose value is not 0; `histogram` of magnitude keys.
    of: K >= 1 values per element: a tuple of expressions, or a formula of them. None: the deltas.
      Where rows matter, the formula's `columns` is their length; it is the tensor's last dimension by default.
      A value that is not finite counts as 0; but in a histogram of the deltas themselves it is among the largest
      keys, as for KthLargest.
    over: with `row` and `column` the result has an entry for each of them.
    accumulator: of sums. `compute`: lanes in the compute type, blocks in float64; only over a tensor. `float64`: all in
      float64. Both orders are fixed (csrc/ops/reduce.h), so a sum has the same bits on every backend.
    pairs: sums of products of two values instead, (i, i) is a square. In float64, where products of float32 are exact.
    intervals: of a histogram, K pairs (low, high) of keys, both ends inside.
    per_element: sums are divided by the tensor's number of elements. Of a model it is the sum of its tensors' means.

    Returns: over a tensor K floats, or integers of a count; over rows or columns (K, rows or columns) float64, where a
    NaN is the canonical one; of a histogram K `HistogramResult`s. With pairs, K is their number. Of no elements
    everything is 0. Over a model, sums of tensors are added up exactly (math.fsum).
    """

    kind: Kind
    of: Formula | tuple[Expr, ...] | None = None
    over: Over = "tensor"
    accumulator: Accumulator = "compute"
    pairs: tuple[tuple[int, int], ...] = ()
    intervals: tuple[tuple[int, int], ...] = ()
    per_element: bool = False
    on_deltas: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.of, tuple | list):
            object.__setattr__(self, "of", Formula(self.of))
        problem = self._problem()
        if problem:
            raise MergeError(f"Reduce({self.kind!r}, over={self.over!r}): {problem}.")

    @property
    def terms(self) -> Formula | None:
        """`of` as a formula; None: the deltas."""
        return self.of if isinstance(self.of, Formula) else None

    def _problem(self) -> str:
        """Why the fields do not go together; empty if they do."""
        for value, known in ((self.kind, Kind), (self.over, Over), (self.accumulator, Accumulator)):
            if value not in get_args(known):
                return f"{value!r} is none of {', '.join(get_args(known))}"
        if self.kind == "sum" and self.accumulator == "compute":
            if self.over != "tensor":
                return "sums of rows and columns are taken in float64: accumulator='float64'"
            if self.pairs:
                return "products are taken in float64: accumulator='float64'"
        if self.pairs and self.kind != "sum":
            return "only sums are taken of products"
        if (self.kind == "histogram") != bool(self.intervals):
            return "a histogram has intervals, nothing else has"
        if self.kind == "histogram" and self.over != "tensor":
            return "a histogram is of a tensor"
        if self.per_element and (self.kind != "sum" or self.over != "tensor"):
            return "a mean per element is of the sum of a tensor"
        return ""


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
    the same bits on every device.
    """

    function: Callable[..., Any]
    on_deltas: bool = True


class WrittenFunction(TensorFunction):
    """A function that a method returned: what it gives is written. The engine makes it of a TensorFunction."""

    __slots__ = ()


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


Measure = KthLargest | Reduce | Gram | TensorFunction
Combine = WeightedSum | ElectAndSum | Map | TensorFunction | Copy
