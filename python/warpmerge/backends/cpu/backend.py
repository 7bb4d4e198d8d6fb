"""The compiled CPU kernels: requests become native items, which a thread pool works through in order."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from ... import _core
from ...requests import Copy, Reduce, TensorFunction
from ...tasks import Outcome, TensorTask, Work
from ...threads import thread_count
from ..primitives import primitive, result
from ..protocol import Backend
from .batches import NativeBatch, batch_key, native_output

# Elements per tile: with three bf16 models and a base the inputs of 128 Ki elements are 1 MiB, what an L2 holds. TIES
# merges in turn, medians of five: 0.95 s with 32 Ki, 1.03 s with 64 Ki, 1.11 s with 128 Ki, 1.50 s with 256 Ki; of 3,
# later: 0.84 s with 32 Ki, 0.88 s with 128 Ki, 1.07 s with 16 Ki, and dare_linear 0.99, 0.91, 1.15 s. So 32 to 128 Ki
# cannot be told apart here, and both ends are worse.
TILE = 128 * 1024
TILE_BYTES = 1 << 20
LEAST_TILE = 512
SMALL = 128 * 1024  # csrc/cpu/select.cpp: tensors up to this size are selected from all their keys at once
STAGE = 512  # elements that are widened at a time
LANES = 256  # of a reduction
FORMULA_ARRAYS = 32  # what formulas hold at once, apart from a few values for each model
POLL_MS = 100


def capacity(count: int) -> int:
    """Keys per model that `select` may collect from a tensor of `count` elements; it needs 0.3 to 3 % of them."""
    return max(1 << 16, min(count // 8, max(1 << 21, count // 256)))


class Extent(NamedTuple):
    """What the memory of a merge follows from. `largest`: elements of the largest tensor. `measures`: whether the
    method does, and so may ask for a Gram matrix."""

    threads: int
    models: int
    itemsize: int = 2
    largest: int = 0
    measures: bool = True


def memory(extent: Extent, tile: int) -> int:
    """Upper estimate of the bytes that a merge allocates."""
    threads, models, itemsize, largest, measures = extent
    compute = max(4, itemsize)
    tiles = tile * itemsize * (models + 2)  # the inputs, the base and the result
    stage = STAGE * 8 * (2 * models + 8)  # widened inputs and intermediate values, float64 at most
    lanes = LANES * 8 * (3 * models + measures * models * (models + 1) // 2)  # partial sums
    formula = STAGE * 8 * (FORMULA_ARRAYS + 4 * models)
    select = SMALL * compute * (models + 2)  # the keys of a small tensor
    return threads * (tiles + stage + lanes + formula + select) + models * compute * capacity(largest)


def tile_for(budget: int | None, extent: Extent) -> int:
    """Elements per tile within a memory budget in bytes (None: no bound). Raises ValueError with the least budget."""
    tile = TILE
    while tile > LEAST_TILE and (
        tile * extent.itemsize * (extent.models + 1) > TILE_BYTES
        or (budget is not None and memory(extent, tile) > budget)
    ):
        tile //= 2
    if budget is not None and memory(extent, tile) > budget:
        raise ValueError(memory(extent, LEAST_TILE))
    return tile


class Ticket:
    """Work under way: native batches of requests of one kind, copies, and what torch carries out."""

    def __init__(self, backend: CpuBackend, work: list[Work]) -> None:
        self._backend, self._work = backend, work
        self._functions: list[int] = []  # places in the work
        self._copies: list[tuple[int, Any]] = []
        self._batches: list[NativeBatch] = []
        kinds: dict[tuple, list[tuple[int, TensorTask, Any]]] = {}
        for place, (task, request) in enumerate(work):
            if isinstance(request, Copy):
                self._copies.append((place, backend.copy(task, request)))
            elif isinstance(request, TensorFunction):
                self._functions.append(place)
            else:
                asked = primitive(task, request, lambda pattern: True) if isinstance(request, Reduce) else request
                kinds.setdefault((id(task.group), *batch_key(asked)), []).append((place, task, asked))
        self._batches = [NativeBatch(backend.pool, backend.tile, capacity, asked) for asked in kinds.values()]
        submit = backend.pool.submit
        self._launches = [submit([batch.native for batch in self._batches], work)] if self._batches else []
        if self._copies:
            self._launches.append(submit([item for _, item in self._copies], work))

    def wait(self) -> list[Outcome]:
        """Blocks until all is done. Raises OSError if a file could not be written or read."""
        outcomes: list[Any] = [None] * len(self._work)
        for place in self._functions:
            from ..tensor_function import carry_out  # needs torch

            task, function = self._work[place]
            assert isinstance(function, TensorFunction)
            outcomes[place] = carry_out(task, function, threads=self._backend.pool.threads)
        while self._launches:
            for launch in self._launches:
                while not launch.wait(POLL_MS):
                    pass
            again = [left for batch in self._batches if (left := batch.unfinished()) is not None]
            self._launches = [self._backend.pool.submit(again, self._work)] if again else []
        for place, item in self._copies:
            outcomes[place] = Outcome(item.digest)
        for batch in self._batches:
            for place, outcome in batch.outcomes():
                task, request = self._work[place]
                if isinstance(request, Reduce):
                    outcome = Outcome(result(task, request, outcome.value), outcome.nonfinite)
                outcomes[place] = outcome
        return outcomes


class CpuBackend(Backend):
    name = "cpu"

    def __init__(self, threads: int | None = None, tile: int | None = None, isa: str | None = None) -> None:
        """`tile`: elements, a multiple of 512. `isa` forces an instruction set, else $WARPMERGE_ISA, else the best."""
        self.pool = _core.Pool(thread_count(threads), isa or os.environ.get("WARPMERGE_ISA", ""))
        self.tile = tile or TILE

    @property
    def isa(self) -> str:
        return self.pool.isa

    def launch(self, work: list[Work]) -> Ticket:
        return Ticket(self, work)

    def copy(self, task: TensorTask, request: Copy) -> Any:
        self.release([task])
        source = task.inputs[request.index]
        return self.pool.copy(source.native(), source.nbytes, self.tile * 2, native_output(task, task.sinks[0]))

    def release(self, tasks: Sequence[TensorTask]) -> None:
        """Drops what masks have decided of tasks that are not combined by them."""
        for task in tasks:
            if task.group.native is not None:
                task.group.native.drop(task.row)

    def cancel(self) -> None:
        """Drops what has not started and waits for what has. No signal ends the wait."""
        self.pool.settle()

    def close(self) -> None:
        self.pool.settle()


def create(threads: int | None = None, tile: int | None = None, device: str = "cpu") -> CpuBackend:
    return CpuBackend(threads, tile)
