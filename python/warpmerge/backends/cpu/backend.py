"""The compiled CPU kernels: requests become native items, which a thread pool works through in order."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from ... import _core
from ...requests import (
    Copy,
    ElectAndSum,
    Gram,
    GramResult,
    HistogramResult,
    KthLargest,
    Map,
    Reduce,
    Selection,
    TensorFunction,
    WeightedSum,
)
from ...tasks import FileSink, Outcome, Request, Sink, TensorTask, Work
from ...threads import thread_count
from ..primitives import Bins, ColumnFolds, KeptSums, RowFolds, TensorSums, primitive, result
from ..protocol import Backend
from .programs import native, native_keep

POLICIES = {"error": 0, "propagate": 1, "base": 2}

# Elements per tile: with three bf16 models and a base the inputs of 128 Ki elements are 1 MiB, what an L2 holds. TIES
# merges in turn, medians of five: 0.95 s with 32 Ki, 1.03 s with 64 Ki, 1.11 s with 128 Ki, 1.50 s with 256 Ki; of 3,
# later: 0.84 s with 32 Ki, 0.88 s with 128 Ki, 1.07 s with 16 Ki, and dare_linear 0.99, 0.91, 1.15 s. So 32 to 128 Ki
# cannot be told apart here, and both ends are worse.
TILE = 128 * 1024
TILE_BYTES = 1 << 20
LEAST_TILE = 512
SMALL = 128 * 1024  # csrc/cpu/select.cpp: tensors up to this size are selected from all their keys at once
FORMULA_ARRAYS = 32  # what formulas hold at once, apart from a few values for each model
POLL_MS = 100


def capacity(count: int) -> int:
    """Keys per model that `select` may collect from a tensor of `count` elements; it needs 0.3 to 3 % of them."""
    return max(1 << 16, min(count // 8, max(1 << 21, count // 256)))


def memory(threads: int, tile: int, models: int, itemsize: int = 2, largest: int = 0) -> int:
    """Upper estimate of the bytes that a merge of `models` models allocates; `largest`: elements of the largest one."""
    compute = max(4, itemsize)
    tiles = tile * itemsize * (models + 2)
    stage = 512 * 8 * (2 * models + 8) + 256 * 8 * (3 * models + models * (models + 1) // 2)
    formula = 512 * 8 * (FORMULA_ARRAYS + 4 * models)
    select = SMALL * compute * (models + 2)
    return threads * (tiles + stage + formula + select) + models * compute * capacity(largest)


def tile_for(budget: int | None, threads: int, models: int, itemsize: int = 2, largest: int = 0) -> int:
    """Elements per tile within a memory budget in bytes (None: no bound). Raises ValueError with the least budget."""
    tile = TILE
    while tile > LEAST_TILE and (
        tile * itemsize * (models + 1) > TILE_BYTES
        or (budget is not None and memory(threads, tile, models, itemsize, largest) > budget)
    ):
        tile //= 2
    if budget is not None and memory(threads, tile, models, itemsize, largest) > budget:
        raise ValueError(memory(threads, LEAST_TILE, models, itemsize, largest))
    return tile


class Ticket:
    def __init__(self, backend: CpuBackend, work: list[Work]) -> None:
        self._backend = backend
        self._work = work
        self._requests = [(task, _primitive(task, request)) for task, request in work]
        self._items = [
            _InTorch(task, request) if isinstance(request, TensorFunction) else backend.item(task, request)
            for task, request in self._requests
        ]
        self._in_torch = [item for item in self._items if isinstance(item, _InTorch)]
        self._launch = backend.submit([item for item in self._items if not isinstance(item, _InTorch)])

    def wait(self) -> list[Outcome]:
        """Blocks until all is done. Raises OSError if a file could not be written or read."""
        for item in self._in_torch:
            item.run(self._backend.pool.threads)
        while True:
            while not self._launch.wait(POLL_MS):
                pass
            self._backend.retire(self._launch)
            again = [i for i in self._items if isinstance(i, _core.Select) and not i.done]
            if not again:
                break
            self._launch = self._backend.submit(again)
        return list(map(self._outcome, self._work, self._requests, self._items))

    def _outcome(self, asked: Work, carried_out: Any, item: Any) -> Outcome:
        task, request = asked
        outcome = _outcome(carried_out[1], item)
        return replace(outcome, value=result(task, request, outcome.value)) if isinstance(request, Reduce) else outcome


class _InTorch:
    """A request on whole tensors: torch carries it out, when it is waited for."""

    outcome: Outcome

    def __init__(self, task: TensorTask, request: TensorFunction) -> None:
        self._task, self._request = task, request

    def run(self, threads: int) -> None:
        from ..tensor_function import carry_out  # needs torch

        self.outcome = carry_out(self._task, self._request, threads=threads)


class CpuBackend(Backend):
    name = "cpu"

    def __init__(self, threads: int | None = None, tile: int | None = None, isa: str | None = None) -> None:
        """`tile`: elements, a multiple of 512. `isa` forces an instruction set, else $WARPMERGE_ISA, else the best."""
        self.pool = _core.Pool(thread_count(threads), isa or os.environ.get("WARPMERGE_ISA", ""))
        self.tile = tile or TILE
        self._launches: list[Any] = []

    @property
    def isa(self) -> str:
        return self.pool.isa

    def launch(self, work: list[Work]) -> Ticket:
        return Ticket(self, work)

    def submit(self, items: list[Any]) -> Any:
        launch = self.pool.submit(items)
        self._launches.append(launch)
        return launch

    def retire(self, launch: Any) -> None:
        self._launches.remove(launch)

    def cancel(self) -> None:
        """Drops what has not started and waits for what has."""
        for launch in self._launches:
            launch.cancel()
        for launch in self._launches:
            try:
                while not launch.wait(POLL_MS):
                    pass
            except OSError:
                pass  # the error that led here is the one to show
        self._launches.clear()

    def close(self) -> None:
        self.cancel()

    def item(self, task: TensorTask, request: Request) -> Any:
        pool, tile = self.pool, self.tile
        if isinstance(request, Copy):
            source = task.inputs[request.index]
            return pool.copy(source.native(), source.nbytes, tile * 2, _output(task, task.sinks[0]))
        tensors = _tensors(task, request)
        if isinstance(request, Map):
            return pool.apply(tensors, tile, request.agree, [_output(task, sink) for sink in task.sinks])
        if isinstance(request, WeightedSum):
            outputs = [_output(task, sink) for sink in task.sinks]
            return pool.weighted_sum(tensors, tile, request.coefficients, request.agree, outputs)
        if isinstance(request, ElectAndSum):
            unused = (0.0,) * len(request.value)
            return pool.elect_and_sum(
                tensors,
                tile,
                request.value,
                request.vote or unused,
                request.divisor or unused,
                request.lambda_,
                request.elect,
                [native_keep(k) for k in request.keep],
                _output(task, task.sinks[0]),
            )
        if isinstance(request, KthLargest):
            return pool.select(tensors, tile, request.counts, request.keep_all_ties, capacity=capacity(task.info.count))
        if isinstance(request, TensorSums):
            return pool.tensor_sums(tensors, tile)
        if isinstance(request, KeptSums):
            return pool.kept_sums(tensors, tile, [native_keep(k) for k in request.keep])
        if isinstance(request, RowFolds):
            return pool.reduce_rows(tensors, tile, request.columns, request.term, request.pairs)
        if isinstance(request, ColumnFolds):
            return pool.reduce_columns(tensors, tile, request.columns, request.term, request.pairs)
        if isinstance(request, Bins):
            return pool.histogram(tensors, tile, request.intervals)
        assert isinstance(request, Gram)
        return pool.gram(tensors, tile)


def _primitive(task: TensorTask, request: Request) -> Any:
    """What a reduction comes down to; any other request as it is."""
    return primitive(task, request, lambda pattern: True) if isinstance(request, Reduce) else request


def _tensors(task: TensorTask, request: Any) -> Any:
    on_deltas = request.on_deltas
    formula = request.formula if isinstance(request, Map) else getattr(request, "of", None)
    found = task.cache.get((on_deltas, formula))
    if found is None:
        found = task.cache[on_deltas, formula] = _core.Tensors(
            task.info.count,
            [view.native() for view in task.inputs],
            task.base.native() if on_deltas and task.base else None,
            task.fp64,
            POLICIES[task.values["nonfinite"]],
            formula and native(task, formula),
        )
    return found


def _output(task: TensorTask, sink: Sink) -> Any:
    code = task.out_dtype.code or 0
    if isinstance(sink, FileSink):
        return _core.Output(code, fd=sink.fd, offset=sink.offset, background=sink.background)
    return _core.Output(code, memory=sink.address)


def _outcome(request: Request, item: Any) -> Outcome:
    if isinstance(item, _InTorch):
        return item.outcome
    if isinstance(request, Copy):
        return Outcome(item.digest)
    nonfinite = tuple(item.nonfinite)
    nonfinite = nonfinite if any(nonfinite) else ()
    if isinstance(request, KthLargest):
        return Outcome([Selection(*row) for row in item.result], nonfinite)
    if isinstance(request, TensorSums | KeptSums):
        return Outcome(item.result, nonfinite)
    if isinstance(request, RowFolds | ColumnFolds):
        import numpy as np

        return Outcome(np.asarray(item), nonfinite)
    if isinstance(request, Bins):
        import numpy as np

        found = zip(item.above, item.shifts, np.asarray(item), strict=True)
        only = [np.frombuffer(item.only(k), np.int64) for k in range(len(item.above))]
        return Outcome(
            [HistogramResult(*f, o if o.size else None) for f, o in zip(found, only, strict=True)], nonfinite
        )
    if isinstance(request, Gram):
        flat = item.result
        models = round((len(flat) * 2 + 0.25) ** 0.5 - 0.5)
        return Outcome(GramResult.unpack(flat, models), nonfinite)
    return Outcome(item.digests[0], nonfinite)


def create(threads: int | None = None, tile: int | None = None, device: str = "cpu") -> CpuBackend:
    return CpuBackend(threads, tile)
