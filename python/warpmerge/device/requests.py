"""Which kernels answer which request. Each request is a generator: it queues work on the device, yields an event where
it has to look at what the device found, and returns its outcomes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Sequence
from typing import Any

import numpy as np

from ..ops import (
    NO_TIE_END,
    Consensus,
    Gram,
    GramResult,
    Keep,
    Moments,
    MomentsResult,
    Select,
    Selection,
    WeightedSum,
)
from ..tasks import Outcome, Request, TensorTask, Work
from .flight import Load
from .scratch import Scratch, Span
from .tables import Kind, Launch, Table, blocks_of, is_aligned, keep_rows

POLICIES = {"error": 0, "propagate": 1, "base": 2}
BINS = 2048 + 2  # of a sweep of `select`; csrc/ops/select.h
SMALL = 65536  # elements up to which a sample saves `select` nothing
SEARCHING = 0  # status of a selection

Steps = Generator[Any, None, list[Outcome]]


class Group:
    """Tasks of a batch whose requests can share launches. `positions`: which of the batch's work they are."""

    def __init__(self, work: Sequence[Work], positions: Sequence[int]) -> None:
        self.positions = list(positions)
        self.tasks: list[TensorTask] = [work[i][0] for i in positions]
        self.requests: list[Any] = [work[i][1] for i in positions]
        task, request = self.tasks[0], self.requests[0]
        self.request = request
        self.models = len(task.inputs)
        self.policy = task.values["nonfinite"]
        with_base = request.relative and task.base is not None
        self.kind = Kind(
            inputs=tuple(b.dtype.code for b in task.inputs),
            base=task.base.dtype.code if with_base else -1,
            out=task.out_dtype.code,
            outputs=len(task.sinks) if isinstance(request, WeightedSum | Consensus) else 0,
            wide=task.wide,
            policy=POLICIES[self.policy],
            aligned=True,
        )
        counts = [blocks_of(t.info.count) for t in self.tasks]
        self.blocks = sum(counts)
        self.first_blocks = list(itertools.accumulate(counts, initial=0))[:-1]
        self.ranges = np.array(list(zip(self.first_blocks, counts, strict=True)), np.int64)

    @property
    def slots(self) -> int:
        return len(self.tasks)

    def table(self, load: Load, numbers: Callable[[int], Any] | None, keeps: Callable[[int], Any] | None) -> Table:
        """`numbers` and `keeps` give a section's row for the task of a slot."""
        slot_of = {id(task): slot for slot, task in enumerate(self.tasks)}
        slots = [slot_of[id(part.task)] for part in load.parts]
        segments = []
        for slot, part in zip(slots, load.parts, strict=True):
            segment = part.segment(slot, self.first_blocks[slot] + blocks_of(part.first))
            segment = segment if self.kind.base >= 0 else segment._replace(base=0)
            segments.append(segment if self.kind.outputs else segment._replace(outputs=()))
        aligned = all(is_aligned(s.base, *s.inputs, *s.outputs) for s in segments)
        kind = self.kind._replace(aligned=aligned)
        return Table(
            kind,
            segments,
            None if numbers is None else np.array([numbers(s) for s in slots], np.float64),
            None if keeps is None else np.array([keeps(s) for s in slots], np.int64),
        )


def grouped(work: Sequence[Work]) -> list[Group]:
    found: dict[tuple, list[int]] = {}
    for position, (task, request) in enumerate(work):
        found.setdefault(_key(task, request), []).append(position)
    return [Group(work, positions) for positions in found.values()]


def _key(task: TensorTask, request: Request) -> tuple:
    flags = {
        WeightedSum: lambda r: (r.relative, r.agree),
        Consensus: lambda r: (r.relative, r.elect),
        Select: lambda r: (r.relative, r.keep_all_ties),
        Moments: lambda r: (r.relative, r.only_l1),
        Gram: lambda r: (r.relative,),
    }[type(request)](request)
    dtypes = tuple(b.dtype.code for b in task.inputs), task.base.dtype.code if task.base else -1, task.out_dtype.code
    return type(request), flags, dtypes, task.wide, task.values["nonfinite"], len(task.sinks)


class Execution:
    """One group's request on one flight: its loads, their tables and the counters that come back."""

    def __init__(
        self,
        group: Group,
        flight: Any,
        kernels: Any,
        scratch: Scratch,
        *,
        results: Sequence[np.ndarray] = (),
        numbers: Callable[[int], Any] | None = None,
        keeps: Callable[[int], Any] | None = None,
    ) -> None:
        """`results`: arrays to begin with, sent along with the tables and fetched by `fetch`."""
        self.group, self.flight, self.kernels, self.scratch = group, flight, kernels, scratch
        self.stream = flight.stream
        self.loads = flight.loads(group.tasks)
        tables = [group.table(load, numbers, keeps) for load in self.loads]
        begin = [np.zeros((group.slots, group.models + 1), np.int64), *results]
        tabled = sum(t.nbytes for t in tables)
        self._span = scratch.take(tabled + sum(r.nbytes for r in begin), mirrored=True)
        self._results_at = tabled
        self.launches: list[Launch] = []
        at = 0
        for table in tables:
            self.launches.append(table.write(self._span.host[at : at + table.nbytes], self._span.address + at))
            at += table.nbytes
        self.results: list[np.ndarray] = []  # views of the mirror: valid after the event of `fetch`
        self._addresses = []
        for array in begin:
            view = self._span.view(at, array.shape, array.dtype)
            view[...] = array
            self.results.append(view)
            self._addresses.append(self._span.address + at)
            at += array.nbytes
        self._span.send(self.stream)

    def address(self, result: int) -> int:
        """Of the `result`-th array of `results` on the device, from 0 on."""
        return self._addresses[result + 1]

    @property
    def nonfinite(self) -> int:
        return self._addresses[0]

    def zeros(self, *shape: int, itemsize: int = 8) -> int:
        """Address of zeroed device memory for so many items."""
        span: Span = self.scratch.take(int(np.prod(shape, dtype=np.int64)) * itemsize)
        span.zero(self.stream)
        return span.address

    def upload(self, array: np.ndarray) -> int:
        span = self.scratch.take(array.nbytes, mirrored=True)
        span.host[...] = array.reshape(-1).view(np.uint8)
        span.send(self.stream)
        return span.address

    def fetch(self) -> Any:
        self._span.fetch(self.stream, self._results_at)
        return self.stream.record()

    def sweep(self, kernel: Callable[..., None], *arguments: Any) -> None:
        self.flight.sweep(self.loads, lambda stream, n: kernel(stream, self.launches[n], *arguments))

    def combine(self, kernel: Callable[..., None], *arguments: Any) -> Any:
        return self.flight.combine(self.loads, lambda stream, n: kernel(stream, self.launches[n], *arguments))

    def nonfinite_of(self, slot: int) -> tuple[int, ...]:
        row = tuple(int(n) for n in self.results[0][slot])
        return row if any(row) else ()


def steps(group: Group, flight: Any, kernels: Any, scratch: Scratch) -> Steps:
    return _STEPS[type(group.request)](group, flight, kernels, scratch)


def _weighted_sum(group: Group, flight: Any, kernels: Any, scratch: Scratch) -> Steps:
    run = Execution(group, flight, kernels, scratch, numbers=lambda s: group.requests[s].coefficients)
    return (yield from _combined(run, kernels.weighted_sum, group.request.agree))


def _consensus(group: Group, flight: Any, kernels: Any, scratch: Scratch) -> Steps:
    def numbers(slot: int) -> list[float]:
        request: Consensus = group.requests[slot]
        unused = (0.0,) * group.models
        return [*request.value, *(request.ballot or unused), *(request.divisor or unused), request.lambda_]

    run = Execution(group, flight, kernels, scratch, numbers=numbers, keeps=_keeps(group))
    return (yield from _combined(run, kernels.consensus, group.request.elect))


def _keeps(group: Group) -> Callable[[int], list]:
    def rows(slot: int) -> list:
        keep: Sequence[Keep] = group.requests[slot].keep
        return keep_rows(keep)

    return rows


def _combined(run: Execution, kernel: Callable[..., None], flag: bool) -> Steps:
    group = run.group
    outgoing = run.combine(kernel, flag, run.nonfinite)
    if run.flight.waits or group.policy == "error":
        yield outgoing.after(run.fetch())
        return [Outcome(outgoing.digest(t), run.nonfinite_of(s)) for s, t in enumerate(group.tasks)]
    return [Outcome(None)] * group.slots


def _reduced(run: Execution, partials: int, width: int, moments: bool) -> Any:
    run.kernels.reduce_blocks(
        run.stream, partials, run.upload(run.group.ranges), run.group.slots, width, moments, run.address(0)
    )
    return run.fetch()


def _moments(group: Group, flight: Any, kernels: Any, scratch: Scratch) -> Steps:
    only_l1, models = group.request.only_l1, group.models
    columns = 2 if only_l1 else 7
    begin = [np.zeros((group.slots, models, columns))]
    run = Execution(group, flight, kernels, scratch, results=begin, keeps=_keeps(group))
    partials = run.zeros(group.blocks, models, columns)
    run.sweep(kernels.moments, only_l1, partials, run.nonfinite)
    yield _reduced(run, partials, models * columns, not only_l1)

    def result(row: np.ndarray) -> MomentsResult:
        if only_l1:
            return MomentsResult(float(row[0]), 0.0, float(row[1]), 0.0, 0.0, 0, 0)
        sum_abs, sum_sq, kept_abs, low, high, nonzero, kept = map(float, row)
        return MomentsResult(sum_abs, sum_sq, kept_abs, low, high, int(nonzero), int(kept))

    return [Outcome([result(r) for r in run.results[1][s]], run.nonfinite_of(s)) for s in range(group.slots)]


def _gram(group: Group, flight: Any, kernels: Any, scratch: Scratch) -> Steps:
    size = group.models * (group.models + 1) // 2
    run = Execution(group, flight, kernels, scratch, results=[np.zeros((group.slots, size))])
    partials = run.zeros(group.blocks, size)
    run.sweep(kernels.gram, partials, run.nonfinite)
    yield _reduced(run, partials, size, False)
    return [
        Outcome(GramResult.unpack(run.results[1][s].tolist(), group.models), run.nonfinite_of(s))
        for s in range(group.slots)
    ]


def _select(group: Group, flight: Any, kernels: Any, scratch: Scratch) -> Steps:
    slots, models = group.slots, group.models
    wide, keep_all = group.kind.wide, group.request.keep_all_ties
    begin = np.zeros((slots, models, 8), np.int64)
    begin[:, :, 0] = [
        r.counts if t.info.count else (0,) * models for t, r in zip(group.tasks, group.requests, strict=True)
    ]
    begin[:, :, 2] = 2**63 - 1 if wide else 2**31 - 1
    begin[:, :, 4] = -1
    begin[:, :, 5] = NO_TIE_END
    begin[:, :, 6] = np.where(begin[:, :, 0] > 0, SEARCHING, 2)
    run = Execution(group, flight, kernels, scratch, results=[begin])
    state = run.address(0)
    bins = run.zeros(slots, models, BINS)
    ties = run.zeros(group.blocks, models, itemsize=4)
    ranges = run.upload(group.ranges)
    sizes = [t.info.count for t in group.tasks if t.info.count]
    if kernels.samples and max(sizes, default=0) > SMALL:
        run.sweep(kernels.select_sample, state)
    nonfinite = run.nonfinite
    sweeps = kernels.select_sweeps(wide, kernels.samples and min(sizes, default=0) > SMALL)
    while True:
        for _ in range(sweeps):
            run.sweep(kernels.select_sweep, state, bins, nonfinite)
            nonfinite = 0  # counted once
            kernels.select_narrow(run.stream, state, bins, slots * models, wide, keep_all)
        run.sweep(kernels.select_ties, state, ties)
        kernels.select_locate(run.stream, state, ties, ranges, slots, models)
        run.sweep(kernels.select_position, state)
        yield run.fetch()
        found = run.results[1]
        if not (found[:, :, 6] == SEARCHING).any():
            break
        sweeps = 1

    def selection(row: np.ndarray) -> Selection:
        target, low, _, above, inside, tie_end = (int(v) for v in row[:6])
        return Selection(low, tie_end, above, inside) if target else Selection()

    return [Outcome([selection(r) for r in found[s]], run.nonfinite_of(s)) for s in range(slots)]


_STEPS = {
    WeightedSum: _weighted_sum,
    Consensus: _consensus,
    Select: _select,
    Moments: _moments,
    Gram: _gram,
}
