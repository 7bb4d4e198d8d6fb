"""The k-th largest magnitude of a whole model, exactly: counts of keys in bins, tensor by tensor.

A sample of the files brackets the key closely enough that one read mostly finds it. The bracket only saves reads:
should it miss, or the bin that counts hold several keys, further reads narrow the interval.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, cast

import numpy as np

from ..dtypes import BFLOAT16, FLOAT32, FLOAT64
from ..models.views import Memory, View
from ..requests import NO_TIE_END, HistogramResult, KthLargest, Reduce, Selection
from ..tasks import TensorTask

if TYPE_CHECKING:
    from .model_scope import ModelScope

RUN = 256  # consecutive elements of a sample
SAMPLE = 1 << 20  # elements: a bracket of 0.4 % of all ranks, about 50,000 keys at the median
KEPT_BINS = 4 << 20  # entries of all tensors' histograms that are remembered, to place ties without another read


@dataclass
class _Search:
    """One value's k-th largest key: `rank` counts from the largest, from 1 on; 0: not asked."""

    rank: int
    low: int
    high: int
    found: Selection | None = None
    at: list[tuple[int, int]] = field(default_factory=list)  # of each tensor: keys above the threshold, equal to it


def select(model: ModelScope, request: KthLargest) -> list[Selection]:
    largest = 2**63 - 1 if model.fp64 else 2**31 - 1
    searches = [_Search(rank, 0, largest) for rank in request.counts]
    if _samples(model, request):
        _bracket(model, searches, request)
    report = True
    while any(s.rank and s.found is None for s in searches):
        results = _sweep(model, request, searches, report)
        report = False
        for k, search in enumerate(searches):
            if search.rank and search.found is None:
                _shrink(search, results.totals[k], largest)
                if search.found is not None:
                    search.at = results.at(k, search.found.threshold)
    return [_with_tie_end(model, request, searches, k) for k in range(len(searches))]


class _Results:
    """Histograms of all tensors: their sums, and as long as there is room each one's occupied bins."""

    def __init__(self, intervals: Sequence[tuple[int, int]]) -> None:
        self.intervals = intervals
        self.totals: list[HistogramResult] = []
        self._rows: list[list[tuple[int, np.ndarray, np.ndarray]]] | None = []
        self._room = KEPT_BINS

    def add(self, row: Sequence[HistogramResult]) -> None:
        if not self.totals:
            self.totals = [_empty(r) for r in row]
        occupied = [np.flatnonzero(r.bins) for r in row]
        self.totals = [_added(t, r, bins) for t, r, bins in zip(self.totals, row, occupied, strict=True)]
        if self._rows is not None:
            self._rows.append([(r.above, bins, r.bins[bins]) for r, bins in zip(row, occupied, strict=True)])
            self._room -= sum(map(len, occupied))
            if self._room < 0:
                self._rows = None

    def at(self, k: int, key: int) -> list[tuple[int, int]]:
        """Of each tensor the keys above `key` and equal to it, which is alone in its bin; empty if forgotten."""
        number = (key - self.intervals[k][0]) >> self.totals[k].shift
        return [
            (above + int(counts[bins > number].sum()), int(counts[bins == number].sum()))
            for above, bins, counts in (row[k] for row in self._rows or [])
        ]


def _empty(like: HistogramResult) -> HistogramResult:
    only = None if like.only is None else np.zeros_like(like.only)
    return HistogramResult(0, like.shift, np.zeros_like(like.bins), only)


def _added(total: HistogramResult, new: HistogramResult, occupied: np.ndarray) -> HistogramResult:
    """`total` with a tensor's counts, which are not 0 at `occupied`, added in place."""
    if total.only is not None:
        mine, others = total.only[occupied], new.only[occupied]
        total.only[occupied] = np.where((total.bins[occupied] == 0) | (mine == others), others, -1)
    total.bins[occupied] += new.bins[occupied]
    return HistogramResult(total.above + new.above, total.shift, total.bins, total.only)


def histograms(model: ModelScope, request: Reduce) -> list[HistogramResult]:
    """Of each value, that of the model."""
    results = _Results(request.intervals)
    for row in model.each(request):
        results.add(row)
    return results.totals


def _histogram(request: KthLargest, intervals: tuple[tuple[int, int], ...]) -> Reduce:
    return Reduce("histogram", request.of, intervals=intervals, on_deltas=request.on_deltas)


def _sweep(model: ModelScope, request: KthLargest, searches: Sequence[_Search], report: bool) -> _Results:
    intervals = tuple((s.low, s.high) for s in searches)
    results = _Results(intervals)
    for row in model.each(_histogram(request, intervals), report=report):
        results.add(row)
    return results


def _shrink(search: _Search, counted: HistogramResult, largest: int) -> None:
    rank = search.rank - counted.above
    if rank <= 0:
        search.low, search.high = search.high + 1, largest
        return
    from_top = np.cumsum(counted.bins[::-1])
    if rank > from_top[-1]:
        search.low, search.high = 0, search.low - 1
        return
    place = int(np.searchsorted(from_top, rank))
    number = len(counted.bins) - 1 - place
    ties = int(counted.bins[number])
    above = counted.above + int(from_top[place]) - ties
    if counted.only is not None and counted.only[number] >= 0:
        search.found = Selection(int(counted.only[number]), NO_TIE_END, above, ties)
        return
    low = search.low + (number << counted.shift)
    search.low, search.high = low, min(search.high, low + (1 << counted.shift) - 1)
    if counted.shift == 0:
        search.found = Selection(low, NO_TIE_END, above, ties)


def _with_tie_end(model: ModelScope, request: KthLargest, searches: Sequence[_Search], k: int) -> Selection:
    """The selection, and where among all tensors the ties that complete the count end."""
    search = searches[k]
    found = search.found
    if found is None:
        return Selection()
    missing = search.rank - found.above
    if request.keep_all_ties or found.threshold == 0 or missing == found.ties:
        return found
    here = [t for t in model.tasks if t.info.count]
    at = search.at
    if not at:
        alone = tuple((found.threshold,) * 2 if i == k else (0, 0) for i in range(len(searches)))
        rows = model.each(_histogram(request, alone), report=False)
        at = [(row[k].above, int(row[k].bins[0])) for row in rows]
    for task, (above, ties) in zip(here, at, strict=True):
        if missing > ties:
            missing -= ties
            continue
        counts = tuple(above + missing if i == k else 0 for i in range(len(searches)))
        (chosen,) = model.each(KthLargest(counts, False, request.on_deltas, request.of), [task], report=False)
        end = min(chosen[k].tie_end, task.info.count)
        return Selection(found.threshold, model.first[task.info.name] + end, found.above, found.ties)
    raise AssertionError("ties that were counted are not there")


# --- a sample -------------------------------------------------------------------------------------------------------


def _samples(model: ModelScope, request: KthLargest) -> bool:
    """Whether some elements can stand for all: where the inputs are at hand, and values do not depend on places."""
    if any(b.device is not None for t in model.tasks for b in t.inputs):
        return False
    if request.of is None:
        return True
    program = request.of.program(len(model.tasks[0].inputs), model.fp64)
    return not (program.rules or program.keys or program.vectors or program.ranked)


def _bracket(model: ModelScope, searches: Sequence[_Search], request: KthLargest) -> None:
    """Intervals that very likely hold the keys, from order statistics of a sample."""
    runs = list(_runs(model.tasks, model.count))
    if len(runs) < 16:
        return
    size = RUN * len(runs)
    # Four standard errors of a rank if elements were independent; neighbours are alike, so it may miss.
    error = 2 * np.sqrt(size)
    places = [s.rank / model.count * size for s in searches]
    highs = [int(p - error) if s.rank and p - error >= 1 else 0 for p, s in zip(places, searches, strict=True)]
    lows = [int(p + error) + 1 if s.rank and p + error < size else 0 for p, s in zip(places, searches, strict=True)]
    sample = _sample(runs, size, model.fp64)
    for counts, end in ((highs, "high"), (lows, "low")):
        if any(counts):
            asked = KthLargest(tuple(counts), True, request.on_deltas, request.of)
            (found,) = model.each(asked, [sample], report=False)
            for search, count, selection in zip(searches, counts, found, strict=True):
                if count:
                    setattr(search, end, selection.threshold)


def _input(k: int, task: TensorTask) -> View:
    return task.inputs[k]


def _sample(runs: Sequence[tuple[TensorTask, int]], size: int, fp64: bool) -> TensorTask:
    """The runs as one tensor in memory, in the compute type; what is not finite is no reason to stop here."""
    dtype = FLOAT64 if fp64 else FLOAT32
    first = runs[0][0]

    def gathered(which: Callable[[TensorTask], View | None]) -> View:
        data = np.empty((len(runs), RUN), dtype.name)
        for row, (task, at) in zip(data, runs, strict=True):
            row[:] = np.resize(_elements(cast(View, which(task)), at, min(RUN, task.info.count)), RUN)
        return Memory(dtype, (data.size,), data.ctypes.data, data)

    return TensorTask.alone(
        replace(first.info, count=size, shape=(size,), fp64=fp64),
        first.method,
        {**first.values, "nonfinite": "propagate"},
        [gathered(functools.partial(_input, k)) for k in range(len(first.inputs))],
        gathered(lambda task: task.base) if first.base is not None else None,
        first.out_dtype,
        (),
        first.labels,
        fp64=fp64,
    )


def _runs(tasks: Sequence[TensorTask], total: int) -> Iterable[tuple[TensorTask, int]]:
    stride = max(1, total * RUN // SAMPLE)
    first, at = 0, stride // 2
    for task in tasks:
        while at < first + task.info.count:
            yield task, min(at - first, max(0, task.info.count - RUN))
            at += stride
        first += task.info.count


def _elements(view: View, at: int, count: int) -> np.ndarray:
    data = bytes(view.read(at, count))
    if view.dtype == BFLOAT16:
        return (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, view.dtype.name)
