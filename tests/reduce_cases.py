"""Reductions for tests: each kind over each dimension, and a backend's answer compared with the reference's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from formula_helpers import KEY, carry_out, formula
from kernel_helpers import reference
from warpmerge.backends.reference.measures import reduced
from warpmerge.expr import expression as f
from warpmerge.expr.expression import Expr
from warpmerge.requests import Reduce

VALUES = [f.base(), f.delta(0), f.delta(1) - f.delta(0), f.delta(0) * f.draw(KEY)]
TOP = 0x7FFFFFFF
INTERVALS = ((0, TOP), (0, 2**63 - 1), (1, 0x3F800000), (0x3B000000, 0x3B00FFFF))
PAIRS = ((0, 0), (0, 1), (2, 1), (2, 3), (3, 3))


class Case(NamedTuple):
    kind: str
    over: str = "tensor"
    accumulator: str = "float64"
    pairs: tuple[tuple[int, int], ...] = ()

    def __str__(self) -> str:
        return f"{'product-' if self.pairs else ''}{self.kind}-{self.over}-{self.accumulator}"


CASES = [
    Case("sum", accumulator="compute"),
    Case("histogram"),
    *(Case(kind, over) for over in ("tensor", "row", "column") for kind in ("sum", "max", "min", "count")),
    *(Case("sum", over, "float64", PAIRS) for over in ("tensor", "row", "column")),
]
# One column, one row; around a panel, a stage, the lanes and the blocks of both orders; rows longer than a tile.
SHAPES = [(1, 1), (1, 700), (700, 1), (2, 7), (65, 3), (129, 128), (64, 129), (3, 256), (70, 257), (129, 512)]
SHAPES += [(33, 896), (6, 4096), (5, 4097), (3, 8193), (2, 20_011)]


def request_of(case: Case, shape: Sequence[int], values: Sequence[Expr] = VALUES, on_deltas: bool = True) -> Reduce:
    """The case's reduction of four values of a tensor whose rows have `shape[-1]` elements."""
    intervals = INTERVALS if case.kind == "histogram" else ()
    of = formula(values, shape[-1])
    return Reduce(case.kind, of, case.over, case.accumulator, case.pairs, intervals, on_deltas=on_deltas)


def measured(backend: Any, request: Any, tensors: Sequence[torch.Tensor], base: Any = None, **options: Any) -> Any:
    return carry_out(backend, request, tensors, base, **options)[0]


def same(got: Any, wanted: Any, what: Any) -> None:
    """The same bits: of arrays, of numbers, of histograms where they are occupied."""
    if isinstance(wanted, list):
        for one, other in zip(got, wanted, strict=True):
            bins, shift = np.asarray(one.bins), other.shift
            assert one.above == other.above, what
            if one.shift == shift:
                assert np.array_equal(bins, other.bins), what
            assert bins.sum() == other.bins.sum(), what
        return
    assert isinstance(got, tuple) == isinstance(wanted, tuple), what
    if isinstance(wanted, tuple):
        assert list(map(type, got)) == list(map(type, wanted)), what
    one, other = np.asarray(got, np.float64), np.asarray(wanted, np.float64)
    assert one.shape == other.shape, what
    assert np.array_equal(one.view(np.int64), other.view(np.int64)), (what, one, other)


def compare(
    make: Callable[..., Any],
    request: Reduce,
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    configurations: Sequence[tuple],
    **options: Any,
) -> Any:
    """The reference's measurement; the backends of all configurations must have the same bits."""
    wanted, counts, _ = carry_out(reference(), request, tensors, base, **options)
    for configuration in configurations:
        got, nonfinite, _ = carry_out(make(*configuration), request, tensors, base, **options)
        assert nonfinite == counts, configuration
        same(got, wanted, configuration)
    return wanted


def folds(
    values: Sequence[torch.Tensor], over: str, kind: str = "sum", pairs: Sequence[tuple[int, int]] = ()
) -> np.ndarray:
    """(terms, rows or columns) float64: the reference's folds of (rows, columns) values."""
    request = Reduce(kind, None, over, "float64", tuple(pairs))
    return reduced([v.reshape(-1) for v in values], request, values[0].shape[1])
