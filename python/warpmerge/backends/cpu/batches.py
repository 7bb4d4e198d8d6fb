"""Requests of one kind on many tensors of a group: a native call for all, and its answers as outcomes."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

from ... import _core
from ...requests import ElectAndSum, Gram, GramResult, HistogramResult, KthLargest, Map, Selection, WeightedSum
from ...tasks import FileSink, Group, Outcome, Sink, TensorTask
from ..primitives import Bins, ColumnFolds, KeptSums, RowFolds, TensorSums
from .programs import native, native_keep

POLICIES = {"error": 0, "propagate": 1, "base": 2}
Asked = tuple[int, TensorTask, Any]  # a place in the work, a task and its request


def batch_key(request: Any) -> tuple:
    """Equal for requests that one call can carry out, for tensors of one group."""
    flags: tuple = ()
    match request:
        case WeightedSum():
            flags = (request.agree, len(request.coefficients))
        case Map():
            flags = (request.agree, len(request.formula.values))
        case ElectAndSum():
            flags = (request.elect,)
        case KthLargest():
            flags = (request.keep_all_ties, _values_of(request))
        case TensorSums() | Bins():
            flags = (_values_of(request),)
        case RowFolds() | ColumnFolds():
            flags = (request.term, request.pairs, _values_of(request))
    return type(request), request.on_deltas, flags


def _values_of(request: Any) -> int:
    """How many values its formula has; 0 for deltas."""
    return 0 if request.of is None else len(request.of.values)


class NativeBatch:
    """Requests with the same `batch_key` on tensors of one group."""

    def __init__(self, pool: Any, tile: int, capacity: Callable[[int], int], asked: Sequence[Asked]) -> None:
        self._asked = asked
        self._kind = type(asked[0][2])
        tasks, requests = [task for _, task, _ in asked], [request for _, _, request in asked]
        group, first = tasks[0].group, requests[0]
        formulas = _formulas(tasks, requests)
        rows = _native(group).rows(array("q", [task.row for task in tasks]), first.on_deltas, formulas)
        self.native = self._made(pool, tile, capacity, rows, tasks, requests)

    def _made(
        self,
        pool: Any,
        tile: int,
        capacity: Callable[[int], int],
        rows: Any,
        tasks: Sequence[TensorTask],
        requests: Sequence[Any],
    ) -> Any:
        first = requests[0]
        if isinstance(first, ElectAndSum):
            keep = [native_keep(mask) for request in requests for mask in request.keep]
            return pool.elect_and_sum(rows, tile, _numbers(requests), first.elect, keep, _outputs(tasks))
        if isinstance(first, WeightedSum):
            coefficients = array("d", chain.from_iterable([request.coefficients for request in requests]))
            return pool.weighted_sum(rows, tile, coefficients, first.agree, _outputs(tasks))
        if isinstance(first, Map):
            return pool.map(rows, tile, first.agree, _outputs(tasks))
        if isinstance(first, KthLargest):
            counts = array("q", chain.from_iterable([request.counts for request in requests]))
            room = array("q", [capacity(task.group.tensors.counts[task.row]) for task in tasks])
            return pool.select(rows, tile, counts, first.keep_all_ties, 0, room)
        if isinstance(first, TensorSums):
            return pool.tensor_sums(rows, tile)
        if isinstance(first, KeptSums):
            return pool.kept_sums(rows, tile, [native_keep(mask) for request in requests for mask in request.keep])
        if isinstance(first, RowFolds | ColumnFolds):
            fold = pool.reduce_rows if isinstance(first, RowFolds) else pool.reduce_columns
            return fold(rows, tile, array("q", [request.columns for request in requests]), first.term, first.pairs)
        if isinstance(first, Bins):
            ends = array("Q", (end for request in requests for pair in request.intervals for end in pair))
            return pool.histogram(rows, tile, ends)
        assert isinstance(first, Gram)
        return pool.gram(rows, tile)

    def unfinished(self) -> Any:
        """What has to be submitted again, or None."""
        return self.native.unfinished() if self._kind is KthLargest else None

    def outcomes(self) -> Iterator[tuple[int, Outcome]]:
        """Of each request its place and its outcome."""
        values = self._values()
        counts = self.native.nonfinite()
        if counts is None:
            return ((place, Outcome(value)) for (place, _, _), value in zip(self._asked, values, strict=True))
        return (
            (place, Outcome.of(value, found))
            for (place, _, _), value, found in zip(self._asked, values, counts, strict=True)
        )

    def _values(self) -> list[Any]:
        kind = self._kind
        if kind is KthLargest:
            return [list(map(Selection._make, rows)) for rows in self.native.selections()]
        if kind in (TensorSums, KeptSums):
            return self.native.sums()
        if kind in (RowFolds, ColumnFolds):
            import numpy as np

            return list(map(np.asarray, self.native.items))
        if kind is Bins:
            return list(map(_histograms, self.native.items))
        if kind is Gram:
            inputs = len(self._asked[0][1].group.inputs)
            return [GramResult.unpack(item.result, inputs) for item in self.native.items]
        return self.native.digests()


def _numbers(requests: Sequence[ElectAndSum]) -> array[float]:
    """Value, vote and divisor of each model, then lambda, of one request after the other."""
    numbers = array("d")
    for request in requests:
        unused = (0.0,) * len(request.value)
        numbers.extend(request.value)
        numbers.extend(request.vote or unused)
        numbers.extend(request.divisor or unused)
        numbers.append(request.lambda_)
    return numbers


def _formulas(tasks: Sequence[TensorTask], requests: Sequence[Any]) -> list[Any]:
    first = requests[0]
    if isinstance(first, Map):
        return [native(task, request.formula) for task, request in zip(tasks, requests, strict=True)]
    if getattr(first, "of", None) is not None:
        return [native(task, request.of) for task, request in zip(tasks, requests, strict=True)]
    return []


def _native(group: Group) -> Any:
    """The group as the native module has it, made once."""
    if group.native is None:
        tensors = group.tensors
        tensors.native = tensors.native or _core.Counts(tensors.counts)
        group.native = _core.TensorGroup(
            tensors.native,
            [column.native() for column in group.inputs],
            group.base.native() if group.base is not None else None,
            group.fp64,
            POLICIES[group.values["nonfinite"]],
        )
    return group.native


def _outputs(tasks: Sequence[TensorTask]) -> Any:
    """The places of all results, those of one tensor side by side."""
    code = tasks[0].group.out_dtype.code or 0
    sinks: list[Any] = list(chain.from_iterable([task.sinks for task in tasks]))  # all of one kind
    if isinstance(sinks[0], FileSink):
        files, offsets = [sink.file for sink in sinks], array("q", [sink.offset for sink in sinks])
        return _core.Outputs.in_files(code, files, offsets, sinks[0].background)
    return _core.Outputs.in_memory(code, array("Q", [sink.address for sink in sinks]))


def native_output(task: TensorTask, sink: Sink) -> Any:
    """One place."""
    code = task.out_dtype.code or 0
    if isinstance(sink, FileSink):
        return _core.Output(code, file=sink.file, offset=sink.offset, background=sink.background)
    return _core.Output(code, memory=sink.address)


def _histograms(item: Any) -> list[HistogramResult]:
    import numpy as np

    found = zip(item.above, item.shifts, np.asarray(item), strict=True)
    only = [np.frombuffer(item.only(k), np.int64) for k in range(len(item.above))]
    return [HistogramResult(*f, o if o.size else None) for f, o in zip(found, only, strict=True)]
