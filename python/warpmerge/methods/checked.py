"""Checks of the requests of methods that are not built in. Backends trust requests, so errors are found here.

A request must fit the tensor: the number of models, the number of elements, the length of rows. The built-in methods
are tested instead, so they do not pay for the checks.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import MergeError
from ..expr.formula import Formula
from ..requests import (
    Copy,
    ElectAndSum,
    Gram,
    KthLargest,
    Map,
    Mask,
    RankMask,
    Reduce,
    TensorFunction,
    WeightedSum,
)
from .base import Base, Steps, TensorInfo

MEASURES = (KthLargest, Reduce, Gram, TensorFunction)
COMBINES = (WeightedSum, ElectAndSum, Map, TensorFunction, Copy)


def checked(name: str, base: Base, steps: Callable[..., Steps]) -> Callable[..., Steps]:
    """`steps`, with a MergeError that names method and tensor where a request does not fit the tensor."""

    @functools.wraps(steps)
    def run(tensor: TensorInfo, values: Mapping[str, Any]) -> Steps:
        running = steps(tensor, values)
        answer = None
        while True:
            try:
                request = running.send(answer)
            except StopIteration as end:
                _check(name, end.value, tensor, base, COMBINES, "returned")
                return end.value
            except LookupError as error:
                what = f"{type(error).__name__}: {error}"
                raise MergeError(
                    f"method '{name}' failed on {tensor} with {tensor.models} models ({what}); that is an error in the "
                    "method."
                ) from error
            _check(name, request, tensor, base, MEASURES, "yielded")
            answer = yield request

    return run


def _check(name: str, request: Any, tensor: TensorInfo, base: Base, kinds: tuple[type, ...], how: str) -> None:
    problem = _problem(request, tensor, base, kinds)
    if problem:
        what = type(request).__name__
        raise MergeError(f"method '{name}' {how} {what} for {tensor}, but {problem}; that is an error in the method.")


def _problem(request: Any, tensor: TensorInfo, base: Base, kinds: tuple[type, ...]) -> str:
    if not isinstance(request, kinds):
        return f"it must be one of {', '.join(kind.__name__ for kind in kinds)}"
    if getattr(request, "on_deltas", False) and not base.is_reference:
        return "the method takes no deltas from its base: pass on_deltas=False, or set base=Base.REFERENCE"
    if isinstance(request, Copy):
        return "" if request.index in range(tensor.models) else f"there is no model {request.index!r}"
    if any(shape != tensor.shape for shape in tensor.auxiliary) and not isinstance(request, TensorFunction):
        return "its auxiliary tensors have another shape than the tensor: only TensorFunction and Copy can use them"
    tensor = dataclasses.replace(tensor, models=tensor.models + len(tensor.auxiliary), auxiliary=())
    formula = getattr(request, "of", None) or getattr(request, "formula", None)
    if formula is not None:
        problem = _formula(formula, tensor)
        if problem:
            return problem
        tensor = dataclasses.replace(tensor, models=len(formula.values))
    match request:
        case KthLargest():
            return _counts(request.counts, tensor)
        case Reduce():
            return _reduction(request, tensor)
        case WeightedSum():
            return _numbers("coefficients", request.coefficients, tensor)
        case ElectAndSum():
            return _elect_and_sum(request, tensor, base)
    return ""


def _formula(formula: Any, tensor: TensorInfo) -> str:
    if not isinstance(formula, Formula) or not formula.values:
        return "its formula must be a Formula of at least one expression"
    try:
        program = formula.program(tensor.models, False)
    except MergeError as error:
        return str(error).rstrip(".")
    knows_rows = program.vectors or program.ranked
    if knows_rows and program.columns != tensor.columns:
        return f"its formula has rows of {program.columns} elements, and the tensor rows of {tensor.columns}"
    for vector, by_row in zip(program.vectors, program.by_row, strict=True):
        wanted = tensor.rows if by_row else tensor.columns
        if getattr(vector, "shape", None) != (wanted,):
            return f"a vector of its formula must have {wanted} entries, one per {'row' if by_row else 'column'}"
    return ""


def _elect_and_sum(request: ElectAndSum, tensor: TensorInfo, base: Base) -> str:
    if base is not Base.REFERENCE or not request.on_deltas:
        return "it needs deltas: set base=Base.REFERENCE"
    votes = [("vote", request.vote), ("divisor", request.divisor)]
    if not request.elect and any(len(values) for _, values in votes):
        return "vote and divisor are for elections: pass elect=True, or leave them out"
    numbers = [("value", request.value), *(votes if request.elect else [])]
    found = [_numbers(title, values, tensor) for title, values in numbers] + [_keep(request.keep, tensor)]
    return next(filter(None, found), "") or ("" if _is_finite(request.lambda_) else "'lambda_' must be a finite number")


def _numbers(title: str, values: Any, tensor: TensorInfo) -> str:
    return _length(title, values, tensor) or (
        "" if all(map(_is_finite, values)) else f"'{title}' must hold finite numbers"
    )


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _counts(counts: Any, tensor: TensorInfo) -> str:
    fit = all(isinstance(c, int) and 0 <= c <= tensor.count for c in counts)
    return _length("counts", counts, tensor) or ("" if fit else f"'counts' must hold integers from 0 to {tensor.count}")


def _reduction(request: Reduce, tensor: TensorInfo) -> str:
    if request.intervals:
        return _length("intervals", request.intervals, tensor)
    columns = request.of.columns if isinstance(request.of, Formula) else 0
    if request.over != "tensor" and tensor.count and columns and tensor.count % columns:
        return f"it has rows of {columns} elements, and the tensor's {tensor.count} elements are no multiple of that"
    return _pairs(request.pairs, tensor) if request.pairs else ""


def _pairs(pairs: Any, tensor: TensorInfo) -> str:
    values = range(tensor.models)
    fit = isinstance(pairs, tuple) and pairs and all(isinstance(p, tuple) and len(p) == 2 for p in pairs)
    fit = fit and all(i in values and k in values for i, k in pairs)
    return "" if fit else f"'pairs' must hold tuples of two indices of values, each from 0 to {tensor.models - 1}"


def _keep(keep: tuple[Mask, ...], tensor: TensorInfo) -> str:
    problem = _length("keep", keep, tensor)
    if problem:
        return problem
    if not all(isinstance(mask, Mask) for mask in keep):
        return "'keep' must hold masks: TopKMask, RandomMask or RankMask"
    wrong = next((m.columns for m in keep if isinstance(m, RankMask) and m.columns != tensor.columns), None)
    return "" if wrong is None else f"a RankMask has rows of {wrong} elements, and the tensor rows of {tensor.columns}"


def _length(title: str, values: Any, tensor: TensorInfo) -> str:
    if not isinstance(values, tuple):
        return f"'{title}' must be a tuple"
    if len(values) != tensor.models:
        return f"'{title}' has {len(values)} entries and must have one per model ({tensor.models})"
    return ""
