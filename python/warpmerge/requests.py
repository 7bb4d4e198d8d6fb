"""Requests: what methods ask of backends. A tensor has any number of measurements and one combination.

Methods make these records, backends carry them out; neither knows the other. K is the number of inputs, without the
base, and n the number of elements of the tensor. With `on_deltas` the inputs are deltas x_k - base. Values are of the
compute type: float32, or float64 if an input is float64.
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
    """Measurement: the count-th largest magnitude of each input, exactly.

    Attributes:
        counts: K integers from 0 to n; 0: not asked.
        keep_all_ties: whether the mask of the answer keeps all ties, not only the first ones.
        on_deltas: True: of deltas. False: of the models' own elements.
        of: a formula whose values take the place of the inputs. A value that is not finite counts as 0.

    Answer:
        A list of K `Selection`.
    """

    counts: tuple[int, ...]
    keep_all_ties: bool = False
    on_deltas: bool = True
    of: Formula | None = None


class Selection(NamedTuple):
    """Answer of `KthLargest` for one input.

    Attributes:
        threshold: the magnitude key of the count-th largest element: the bit pattern of |d| as an unsigned integer.
        tie_end: flat index before which ties are kept, so that `count` elements are kept in all.
        above: number of elements above the threshold.
        ties: number of elements that equal it.
    """

    threshold: int = 0
    tie_end: int = NO_TIE_END
    above: int = 0
    ties: int = 0

    def keep(self) -> TopKMask:
        """The mask that keeps `count` elements. It has no meaning if the count was 0: use KEEP_NONE."""
        return TopKMask(self.threshold, self.tie_end)

    def magnitude(self, fp64: bool) -> float:
        """The threshold as a number. fp64: whether the compute type is float64 (`TensorInfo.fp64`)."""
        key = self.threshold.to_bytes(8 if fp64 else 4, "little")
        return float(struct.unpack("<d" if fp64 else "<f", key)[0])


Kind = Literal["sum", "max", "min", "count", "histogram"]
Over = Literal["tensor", "row", "column"]
Accumulator = Literal["compute", "float64"]


@dataclass(frozen=True, slots=True)
class Reduce:
    """Measurement: folds the values of expressions over a tensor, or over each of its rows or columns.

    Attributes:
        kind: `sum`, `max`, `min`, `count` of values that are not 0, or `histogram` of magnitude keys.
        of: V >= 1 values per element, as a tuple of expressions or a Formula. None: the K deltas. Where rows matter,
            the formula's `columns` is their length; default: the tensor's last dimension. A value that is not finite
            counts as 0; in a histogram of the deltas themselves it is among the largest keys, as for KthLargest.
        over: `tensor`, `row` or `column`.
        accumulator: type of sums. `compute`: lanes in the compute type, blocks in float64; only over a tensor.
            `float64`: all in float64. The order of sums is fixed (csrc/ops/reduce.h), so a sum has the same bits on
            every backend.
        pairs: indices (i, j) of values: sums of products of two values, in float64, instead of sums of values.
            Products of float32 are exact there.
        intervals: for a histogram, V pairs (low, high) of keys; both ends belong to the interval.
        per_element: whether a sum over a tensor is divided by n. Over a model: the sum of the tensors' means.
        on_deltas: True: of deltas. False: of the models' own elements.

    Answer:
        Over a tensor: a tuple of V floats; integers for `count`. Over rows or columns: a float64 array (V, rows) or
        (V, columns), where every NaN is the canonical one. For a histogram: a list of V `HistogramResult`. With pairs,
        V is their number. Everything is 0 for a tensor without elements. Over a model, sums of tensors are added up
        exactly (math.fsum).

    Raises:
        MergeError: the fields do not go together.
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
        """`of` as a Formula; None: the deltas."""
        return self.of if isinstance(self.of, Formula) else None

    def _problem(self) -> str:
        """The reason why the fields do not go together; empty if they do."""
        for value, known in ((self.kind, Kind), (self.over, Over), (self.accumulator, Accumulator)):
            if value not in get_args(known):
                return f"{value!r} is not one of {', '.join(get_args(known))}"
        if self.kind == "sum" and self.accumulator == "compute":
            if self.over != "tensor":
                return "sums of rows and columns need accumulator='float64'"
            if self.pairs:
                return "sums of products need accumulator='float64'"
        if self.pairs and self.kind != "sum":
            return "pairs are for sums"
        if (self.kind == "histogram") != bool(self.intervals):
            return "a histogram needs intervals, and only a histogram takes them"
        if self.kind == "histogram" and self.over != "tensor":
            return "a histogram needs over='tensor'"
        if self.per_element and (self.kind != "sum" or self.over != "tensor"):
            return "per_element is for sums over a tensor"
        return ""


@dataclass(frozen=True, slots=True)
class Gram:
    """Measurement: squared norms and mutual squared distances of the inputs, in float64.

    Attributes:
        on_deltas: True: of deltas. False: of the models' own elements.

    Answer:
        A `GramResult`.
    """

    on_deltas: bool


@dataclass(frozen=True, slots=True)
class GramResult:
    """Answer of `Gram`.

    Attributes:
        norms_sq: K squared norms.
        distances_sq: (K, K) squared distances, symmetric, 0 on the diagonal.
    """

    norms_sq: tuple[float, ...]
    distances_sq: tuple[tuple[float, ...], ...]

    @classmethod
    def unpack(cls, flat: list[float], models: int) -> GramResult:
        """Makes it from K norms, followed by the distances of (0, 1), (0, 2), ..., (1, 2), ..."""
        rest = iter(flat[models:])
        above = {(i, k): next(rest) for i in range(models) for k in range(i + 1, models)}
        table = [[above.get((min(i, k), max(i, k)), 0.0) for k in range(models)] for i in range(models)]
        return cls(tuple(flat[:models]), tuple(map(tuple, table)))


@dataclass(frozen=True, slots=True)
class HistogramResult:
    """Answer of `Reduce("histogram")` for one value. The backend chooses the number of bins.

    Attributes:
        above: number of keys above the interval.
        shift: bin i counts the keys from low + (i << shift) to the start of the next bin.
        bins: (bins,) int64 counts.
        only: (bins,) int64: the one key in a bin that is not empty, -1 if it has several. None: not known.
    """

    above: int
    shift: int
    bins: Any
    only: Any = None


@dataclass(frozen=True, slots=True)
class TensorFunction:
    """Measurement or combination: a function of whole tensors in torch.

    Attributes:
        function: called as function(tensors, base). `tensors` is a list of torch tensors: the K inputs in the compute
            type and the tensor's shape, then the auxiliary tensors in their shapes. `base` is a torch tensor; None
            without `on_deltas`. The function may change the inputs, not the base.
        on_deltas: True: the inputs are deltas. False: the models' own elements.

    As a measurement, the answer is what the function returns. As a combination, the function returns a floating-point
    tensor of the tensor's shape; with `on_deltas` it is added to the base.

    The function runs where the tensors are. It needs memory for the whole tensor, not for a tile. Its results need not
    have the same bits on every device.
    """

    function: Callable[..., Any]
    on_deltas: bool = True


class WrittenFunction(TensorFunction):
    """A TensorFunction as a combination: its result is written. The engine makes it."""

    __slots__ = ()


INPUTS = "inputs"


@dataclass(frozen=True, slots=True)
class Map:
    """Combination: the value of an expression for each element; with `on_deltas`, base + value.

    Attributes:
        formula: one expression for each output of the task; a method has one output.
        on_deltas: True: the inputs are deltas. False: the models' own elements.
        agree: if the first `agree` inputs of an element are bit-identical, the output is that input. For means.
        nan_of: under `nonfinite: propagate` the output is NaN where this is NaN. INPUTS: the sum of the inputs that the
            formula reads, so that a comparison cannot hide NaN. An Expr: that expression. None: the values decide.
    """

    formula: Formula
    on_deltas: bool
    agree: int = 0
    nan_of: Expr | str | None = INPUTS

    def propagating(self) -> Map:
        """The request for `nonfinite: propagate`, with NaN where `nan_of` is NaN."""
        formula = self.formula
        of = library.sum_of_inputs(formula.values) if isinstance(self.nan_of, str) else self.nan_of
        if of is None:
            return self
        guarded = Formula(library.with_nan(formula.values, of), formula.columns, formula.first)
        return Map(guarded, self.on_deltas, self.agree, None)


@dataclass(frozen=True, slots=True)
class WeightedSum:
    """Combination: sum_k c_k x_k; with `on_deltas`, base + sum_k c_k (x_k - base).

    Attributes:
        coefficients: K numbers for each output of the task; a method has one output.
        on_deltas: True: the inputs are deltas. False: the models' own elements.
        agree: whether the coefficients are those of a mean: if all inputs of an element are bit-identical, the output
            is that input.
    """

    coefficients: tuple[float, ...]
    on_deltas: bool
    agree: bool = False

    def as_map(self, models: int) -> Map:
        """The same as a Map for K = `models` inputs, for backends without a kernel for it."""
        values = library.weighted_sum(library.deltas(models), self.coefficients)
        return Map(Formula(values), self.on_deltas, models if self.agree else 0, None)


@dataclass(frozen=True, slots=True)
class ElectAndSum:
    """Combination: base + lambda * (sum of value_k d_k) / (sum of divisor_k), d_k masked, over the models that agree.

    expr/library.py defines it; docs/numerics.md does so in words.

    Attributes:
        value: K numbers.
        keep: K masks, one for each delta.
        vote: K numbers: the vote of model k is vote_k d_k. For an election only.
        divisor: K numbers, for an election only. All 0: there is no division.
        lambda_: a factor.
        elect: whether there is an election. Without one all models agree, and there is no division.
        on_deltas: always True.
    """

    value: tuple[float, ...]
    keep: tuple[Mask, ...]
    vote: tuple[float, ...] = ()
    divisor: tuple[float, ...] = ()
    lambda_: float = 1.0
    elect: bool = False
    on_deltas: bool = True

    def as_map(self, models: int) -> Map:
        """The same as a Map for K = `models` inputs, for backends without a kernel for it."""
        kept = library.all_masked(library.deltas(models), self.keep)
        return Map(Formula((self.merged(kept),)), self.on_deltas, nan_of=None)

    def merged(self, kept: Sequence[Expr]) -> Expr:
        """The merged delta as an expression of K masked deltas; `keep` is not used."""
        return library.elect_and_sum(kept, self.value, self.vote, self.divisor, self.lambda_, elect=self.elect)


@dataclass(frozen=True, slots=True)
class Copy:
    """Combination: one input, byte for byte, or converted exactly if the output has another dtype.

    Attributes:
        index: index of the input, from 0.
    """

    index: int = 0


Measure = KthLargest | Reduce | Gram | TensorFunction
Combine = WeightedSum | ElectAndSum | Map | TensorFunction | Copy
