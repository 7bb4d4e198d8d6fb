"""The k-th largest magnitude of a whole model, exactly: counts of keys in bins, tensor by tensor.

A sample of the files brackets the key closely enough that one read mostly finds it. The bracket only saves reads:
should it miss, or a bin hold several keys, further reads narrow the interval.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from .dtypes import BFLOAT16
from .ops import NO_TIE_END, Histogram, HistogramResult, Select, Selection
from .tasks import Buffer, TensorTask

if TYPE_CHECKING:
    from .model_scope import ModelScope

RUN = 256  # consecutive elements of a sample
SAMPLE = 1 << 20  # elements: their rank is within 0.2 % of the model's, four standard errors, if neighbours differ
KEPT_BINS = 4 << 20  # entries of all tensors' histograms that are remembered, to place ties without another read


@dataclass
class _Search:
    """One value's k-th largest key: `rank` counts from the largest, from 1 on; 0: not asked."""

    rank: int
    low: int
    high: int
    found: Selection | None = None
    at: list[tuple[int, int]] = field(default_factory=list)  # of each tensor: keys above the threshold, equal to it


def select(model: ModelScope, request: Select) -> list[Selection]:
    largest = 2**63 - 1 if model.wide else 2**31 - 1
    searches = [_Search(rank, 0, largest) for rank in request.counts]
    if request.of is None:
        _bracket(model, searches, request.relative)
    report = True
    while any(s.rank and s.found is None for s in searches):
        results = _sweep(model, request, searches, report)
        report = False
        for k, search in enumerate(searches):
            if search.rank and search.found is None:
                _narrow(search, results.totals[k], largest)
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
            self.totals = [HistogramResult(0, r.shift, np.zeros_like(r.bins)) for r in row]
        self.totals = [
            HistogramResult(t.above + r.above, t.shift, t.bins + r.bins) for t, r in zip(self.totals, row, strict=True)
        ]
        if self._rows is not None:
            occupied = [np.flatnonzero(r.bins) for r in row]
            self._rows.append([(r.above, bins, r.bins[bins]) for r, bins in zip(row, occupied, strict=True)])
            self._room -= sum(map(len, occupied))
            if self._room < 0:
                self._rows = None

    def at(self, k: int, key: int) -> list[tuple[int, int]]:
        """Of each tensor the keys above `key` and equal to it, for bins of one key; empty if they are forgotten."""
        number = key - self.intervals[k][0]
        return [
            (above + int(counts[bins > number].sum()), int(counts[bins == number].sum()))
            for above, bins, counts in (row[k] for row in self._rows or [])
        ]


def _sweep(model: ModelScope, request: Select, searches: Sequence[_Search], report: bool) -> _Results:
    intervals = tuple((s.low, s.high) for s in searches)
    results = _Results(intervals)
    for row in model.each(Histogram(intervals, request.relative, request.of), report=report):
        results.add(row)
    return results


def _narrow(search: _Search, counted: HistogramResult, largest: int) -> None:
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
    low = search.low + (number << counted.shift)
    search.low, search.high = low, min(search.high, low + (1 << counted.shift) - 1)
    if counted.shift == 0:
        search.found = Selection(low, NO_TIE_END, above, ties)


def _with_tie_end(model: ModelScope, request: Select, searches: Sequence[_Search], k: int) -> Selection:
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
        alone = tuple((s.low, s.high) if i == k else (0, 0) for i, s in enumerate(searches))
        rows = model.each(Histogram(alone, request.relative, request.of), report=False)
        at = [(row[k].above, int(row[k].bins[0])) for row in rows]
    for task, (above, ties) in zip(here, at, strict=True):
        if missing > ties:
            missing -= ties
            continue
        counts = tuple(above + missing if i == k else 0 for i in range(len(searches)))
        (chosen,) = model.each(Select(counts, False, request.relative, request.of), [task], report=False)
        end = min(chosen[k].tie_end, task.info.count)
        return Selection(found.threshold, model.first[task.info.name] + end, found.above, found.ties)
    raise AssertionError("ties that were counted are not there")


# --- a sample -------------------------------------------------------------------------------------------------------


def _bracket(model: ModelScope, searches: Sequence[_Search], relative: bool) -> None:
    """Intervals that very likely hold the keys, where the inputs are at hand."""
    if any(b.device is not None for t in model.tasks for b in t.inputs):
        return
    total = model.count
    runs = list(_runs(model.tasks, total))
    if len(runs) < 16:
        return
    size = RUN * len(runs)
    error = 4 * np.sqrt(size)  # of a rank: a share of at most a half varies by sqrt(n) / 2, neighbours alike by more
    for k, search in enumerate(searches):
        if not search.rank:
            continue
        keys = np.sort(np.concatenate([_keys(task, k, at, relative, model.wide) for task, at in runs]))
        place = size - search.rank / total * size
        below, above = int(place - error), int(place + error)
        search.low = int(keys[below]) if below >= 0 else 0
        search.high = int(keys[above]) if above < size else search.high


def _runs(tasks: Sequence[TensorTask], total: int) -> Iterable[tuple[TensorTask, int]]:
    stride = max(1, total * RUN // SAMPLE)
    first, at = 0, stride // 2
    for task in tasks:
        while at < first + task.info.count:
            yield task, min(at - first, max(0, task.info.count - RUN))
            at += stride
        first += task.info.count


def _keys(task: TensorTask, k: int, at: int, relative: bool, wide: bool) -> np.ndarray:
    compute = np.float64 if wide else np.float32
    count = min(RUN, task.info.count)
    d = _elements(task.inputs[k], at, count).astype(compute)
    if relative and task.base is not None:
        with np.errstate(all="ignore"):
            d = d - _elements(task.base, at, count).astype(compute)
    d = np.resize(np.abs(d), RUN)  # a short tensor counts as often as it takes
    return d.view(np.uint64 if wide else np.uint32).astype(np.int64)


def _elements(buffer: Buffer, at: int, count: int) -> np.ndarray:
    size = buffer.dtype.itemsize
    data = bytes(buffer.read(at * size, count * size))
    if buffer.dtype == BFLOAT16:
        return (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, buffer.dtype.name)
