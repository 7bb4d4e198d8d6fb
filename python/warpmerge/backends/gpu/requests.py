"""Which kernels answer which request. Each request is a generator: it queues work on the device, yields an event where
it has to look at what the device found, and returns its outcomes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...requests import (
    NO_TIE_END,
    ElectAndSum,
    Gram,
    GramResult,
    HistogramResult,
    KthLargest,
    Map,
    Mask,
    Selection,
    WeightedSum,
)
from ...tasks import Outcome
from ..primitives import Bins, ColumnFolds, KeptSums, RowFolds, TensorSums
from .execution import Execution, LaunchGroup, Steps
from .formulas import FormulaExecution
from .rows import columns, rows
from .scratch import Scratch
from .tables import rule_rows

BINS = 2048 + 2  # of a sweep of `select`; csrc/ops/select.h
SMALL = 65536  # elements up to which a sample saves `select` nothing
SEARCHING = 0  # status of a selection


def steps(group: LaunchGroup, residency: Any, kernels: Any, scratch: Scratch) -> Steps:
    return _STEPS[type(group.request)](group, residency, kernels, scratch)


def _weighted_sum(group: LaunchGroup, residency: Any, kernels: Any, scratch: Scratch) -> Steps:
    run = Execution(group, residency, kernels, scratch, numbers=lambda s: group.requests[s].coefficients)
    return (yield from _combined(run, kernels.weighted_sum, group.request.agree))


def _elect_and_sum(group: LaunchGroup, residency: Any, kernels: Any, scratch: Scratch) -> Steps:
    def numbers(tensor: int) -> list[float]:
        request: ElectAndSum = group.requests[tensor]
        unused = (0.0,) * group.models
        return [*request.value, *(request.vote or unused), *(request.divisor or unused), request.lambda_]

    run = Execution(group, residency, kernels, scratch, numbers=numbers, rules=_rules(group))
    return (yield from _combined(run, kernels.elect_and_sum, group.request.elect))


def _map(group: LaunchGroup, residency: Any, kernels: Any, scratch: Scratch) -> Steps:
    run = FormulaExecution(group, residency, kernels, scratch)
    return (yield from _written(run, run.evaluate(group.request.agree)))


def _rules(group: LaunchGroup) -> Callable[[int], list]:
    def rows(tensor: int) -> list:
        keep: Sequence[Mask] = group.requests[tensor].keep
        return rule_rows(keep)

    return rows


def _combined(run: Execution, kernel: Callable[..., None], flag: bool) -> Steps:
    return (yield from _written(run, run.combine(kernel, flag, run.nonfinite)))


def _written(run: Execution, outgoing: Any) -> Steps:
    group = run.group
    if run.residency.waits or group.asks:
        yield outgoing.after(run.fetch())
        return [Outcome(outgoing.digest(t), run.nonfinite_of(s)) for s, t in enumerate(group.tasks)]
    return [Outcome(None)] * group.tensors


def _measuring(group: LaunchGroup, *arguments: Any, **options: Any) -> Execution:
    """On the inputs, or on the values of a formula."""
    return (Execution if group.programs[0] is None else FormulaExecution)(group, *arguments, **options)


def _reduced(run: Execution, partials: int, width: int) -> Any:
    run.kernels.reduce_blocks(
        run.stream, partials, run.upload(run.group.ranges), run.group.tensors, width, run.address(0)
    )
    return run.fetch()


def _tensor_sums(group: LaunchGroup, residency: Any, kernels: Any, scratch: Scratch) -> Steps:
    run = _measuring(group, residency, kernels, scratch, results=[np.zeros((group.tensors, group.models))])
    return (yield from _summed(run, kernels.tensor_sums, group.models))


def _kept_sums(group: LaunchGroup, residency: Any, kernels: Any, scratch: Scratch) -> Steps:
    width = 2 * group.models
    begin = [np.zeros((group.tensors, width))]
    run = Execution(group, residency, kernels, scratch, results=begin, rules=_rules(group))
    return (yield from _summed(run, kernels.kept_sums, width))


def _summed(run: Execution, kernel: Callable[..., None], width: int) -> Steps:
    """`width` sums of each tensor, of which `kernel` makes those of its blocks."""
    group = run.group
    partials = run.zeros(group.blocks, width)
    run.sweep(kernel, partials, run.nonfinite)
    yield _reduced(run, partials, width)
    return [Outcome(run.results[1][s].tolist(), run.nonfinite_of(s)) for s in range(group.tensors)]


def _gram(group: LaunchGroup, residency: Any, kernels: Any, scratch: Scratch) -> Steps:
    size = group.models * (group.models + 1) // 2
    run = Execution(group, residency, kernels, scratch, results=[np.zeros((group.tensors, size))])
    partials = run.zeros(group.blocks, size)
    run.sweep(kernels.gram, partials, run.nonfinite)
    yield _reduced(run, partials, size)
    return [
        Outcome(GramResult.unpack(run.results[1][s].tolist(), group.models), run.nonfinite_of(s))
        for s in range(group.tensors)
    ]


def _select(group: LaunchGroup, residency: Any, kernels: Any, scratch: Scratch) -> Steps:
    tensors, models = group.tensors, group.models
    fp64, keep_all = group.kind.fp64, group.request.keep_all_ties
    begin = np.zeros((tensors, models, 8), np.int64)
    begin[:, :, 0] = [
        r.counts if t.info.count else (0,) * models for t, r in zip(group.tasks, group.requests, strict=True)
    ]
    begin[:, :, 2] = 2**63 - 1 if fp64 else 2**31 - 1
    begin[:, :, 4] = -1
    begin[:, :, 5] = NO_TIE_END
    begin[:, :, 6] = np.where(begin[:, :, 0] > 0, SEARCHING, 2)
    run = _measuring(group, residency, kernels, scratch, results=[begin])
    state = run.address(0)
    bins = run.zeros(tensors, models, BINS)
    ties = run.zeros(group.blocks, models, itemsize=4)
    ranges = run.upload(group.ranges)
    sizes = [t.info.count for t in group.tasks if t.info.count]
    if kernels.samples and max(sizes, default=0) > SMALL:
        run.sweep(kernels.select_sample, state)
    nonfinite = run.nonfinite
    sweeps = kernels.select_sweeps(fp64, kernels.samples and min(sizes, default=0) > SMALL)
    while True:
        for _ in range(sweeps):
            run.sweep(kernels.select_sweep, state, bins, nonfinite)
            nonfinite = 0  # counted once
            kernels.shrink_interval(run.stream, state, bins, tensors * models, fp64, keep_all)
        run.sweep(kernels.select_ties, state, ties)
        kernels.select_locate(run.stream, state, ties, ranges, tensors, models)
        run.sweep(kernels.select_position, state)
        yield run.fetch()
        found = run.results[1]
        if not (found[:, :, 6] == SEARCHING).any():
            break
        sweeps = 1

    def selection(row: np.ndarray) -> Selection:
        target, low, _, above, inside, tie_end = (int(v) for v in row[:6])
        return Selection(low, tie_end, above, inside) if target else Selection()

    return [Outcome([selection(r) for r in found[s]], run.nonfinite_of(s)) for s in range(tensors)]


def _histogram(group: LaunchGroup, residency: Any, kernels: Any, scratch: Scratch) -> Steps:
    state = np.zeros((group.tensors, group.models, 8), np.int64)
    state[:, :, 1:3] = [r.intervals for r in group.requests]
    bins = np.zeros((group.tensors, group.models, BINS), np.int64)
    run = _measuring(group, residency, kernels, scratch, results=[state, bins])
    run.sweep(kernels.select_sweep, run.address(0), run.address(1), run.nonfinite)
    yield run.fetch()

    def result(tensor: int) -> list[HistogramResult]:
        found = []
        for (low, high), row in zip(group.requests[tensor].intervals, run.results[2][tensor], strict=True):
            shift = max(0, (high - low).bit_length() - (kernels.bins - 1).bit_length())
            found.append(HistogramResult(int(row[BINS - 2]), shift, row[: kernels.bins].copy()))
        return found

    return [Outcome(result(s), run.nonfinite_of(s)) for s in range(group.tensors)]


_STEPS = {
    Map: _map,
    RowFolds: rows,
    ColumnFolds: columns,
    Bins: _histogram,
    WeightedSum: _weighted_sum,
    ElectAndSum: _elect_and_sum,
    KthLargest: _select,
    TensorSums: _tensor_sums,
    KeptSums: _kept_sums,
    Gram: _gram,
}
