"""Requests of one kind on one residency: tasks that share launches, their tables, the counters that come back."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Sequence
from typing import Any

import numpy as np

from ...expr.program import Program
from ...requests import ElectAndSum, Gram, KthLargest, Map, WeightedSum
from ...tasks import Outcome, Request, TensorTask, Work
from ..cpu.programs import check_rows
from ..primitives import Bins, ColumnFolds, KeptSums, RowFolds, TensorSums
from .scratch import Scratch, ScratchMemory
from .tables import KernelLaunch, Kind, Table, blocks_of, is_aligned
from .tiles import Tile

POLICIES = {"error": 0, "propagate": 1, "base": 2}
COMBINING = WeightedSum | ElectAndSum | Map

Steps = Generator[Any, None, list[Outcome]]  # see `requests`


class LaunchGroup:
    """Tasks of a batch whose requests can share launches. `positions`: which of the batch's work they are.

    `tensor_of`: the number of a task's tensor in the group, by the id of the task.
    `models`: what is combined or measured of each tensor: its inputs, or the values of a formula.
    """

    def __init__(self, work: Sequence[Work], positions: Sequence[int]) -> None:
        self.positions = list(positions)
        self.tasks: list[TensorTask] = [work[i][0] for i in positions]
        self.requests: list[Any] = [work[i][1] for i in positions]
        self.programs: list[Any] = [program_of(t, r) for t, r in zip(self.tasks, self.requests, strict=True)]
        task, request = self.tasks[0], self.requests[0]
        self.request = request
        self.inputs = len(task.group.inputs)
        self.combines = isinstance(request, COMBINING)
        program = self.programs[0]
        self.models = self.inputs if program is None or self.combines else len(program.outputs)
        self.policy = task.values["nonfinite"]
        self.kind = Kind(
            inputs=tuple(b.dtype.kernel_code for b in task.inputs),
            base=task.base.dtype.kernel_code if task.base is not None and request.on_deltas else -1,
            out=task.out_dtype.kernel_code,
            outputs=len(task.sinks) if self.combines else 0,
            fp64=task.fp64,
            policy=POLICIES[self.policy],
            aligned=True,
        )
        counts = [blocks_of(t.info.count) for t in self.tasks]
        self.blocks = sum(counts)
        self.first_blocks = list(itertools.accumulate(counts, initial=0))[:-1]
        self.ranges = np.array(list(zip(self.first_blocks, counts, strict=True)), np.int64)
        self.tensor_of = {id(task): tensor for tensor, task in enumerate(self.tasks)}

    @property
    def asks(self) -> bool:
        """Whether what the device counts decides what follows."""
        return self.policy == "error" or (self.policy == "base" and self.kind.base < 0)

    @property
    def tensors(self) -> int:
        return len(self.tasks)

    def table(self, tile: Tile, numbers: Callable[[int], Any] | None, rules: Callable[[int], Any] | None) -> Table:
        """`numbers` and `rules` give a section's row for a tensor."""
        tensors = [self.tensor_of[id(segment.task)] for segment in tile.segments]
        rows = []
        for tensor, segment in zip(tensors, tile.segments, strict=True):
            row = segment.row(tensor, self.first_blocks[tensor] + blocks_of(segment.first))
            row = row if self.kind.base >= 0 else row._replace(base=0)
            rows.append(row if self.kind.outputs else row._replace(outputs=()))
        aligned = all(is_aligned(r.base, *r.inputs, *r.outputs) for r in rows)
        kind = self.kind._replace(aligned=aligned)
        return Table(
            kind,
            rows,
            None if numbers is None else np.array([numbers(s) for s in tensors], np.float64),
            None if rules is None else np.array([rules(s) for s in tensors], np.int64),
        )


def program_of(task: TensorTask, request: Request) -> Program | None:
    """Of the formula that a request is about, if it is about one. Raises MergeError if it does not fit the tensor."""
    formula = request.formula if isinstance(request, Map) else getattr(request, "of", None)
    if formula is None:
        return None
    program = formula.program(len(task.group.inputs), fp64=task.fp64)
    check_rows(task, program)
    return program


def grouped(work: Sequence[Work]) -> list[LaunchGroup]:
    found: dict[tuple, list[int]] = {}
    for position, (task, request) in enumerate(work):
        found.setdefault(_key(task, request), []).append(position)
    return [LaunchGroup(work, positions) for positions in found.values()]


def _key(task: TensorTask, request: Any) -> tuple:
    flags = {
        WeightedSum: lambda r: (r.agree,),
        ElectAndSum: lambda r: (r.elect,),
        Map: lambda r: (r.agree,),
        KthLargest: lambda r: (r.keep_all_ties,),
        Gram: lambda r: (),
        TensorSums: lambda r: (),
        KeptSums: lambda r: (),
        RowFolds: lambda r: (r.term, r.pairs),
        ColumnFolds: lambda r: (r.term, r.pairs),
        Bins: lambda r: (),
    }[type(request)](request)
    dtypes = tuple(b.dtype.code for b in task.inputs), task.base.dtype.code if task.base else -1, task.out_dtype.code
    program = program_of(task, request)
    structure = program and program.structure
    policy = task.values["nonfinite"]
    return type(request), request.on_deltas, flags, dtypes, task.fp64, policy, len(task.sinks), structure


class Execution:
    """One group's request on one residency: its tiles, their tables and the counters that come back."""

    def __init__(
        self,
        group: LaunchGroup,
        residency: Any,
        kernels: Any,
        scratch: Scratch,
        *,
        results: Sequence[np.ndarray] = (),
        numbers: Callable[[int], Any] | None = None,
        rules: Callable[[int], Any] | None = None,
    ) -> None:
        """`results`: arrays to begin with, sent along with the tables and fetched by `fetch`."""
        self.group, self.residency, self.kernels, self.scratch = group, residency, kernels, scratch
        self.stream = residency.stream
        self.tiles = self._tiles()
        tables = self._tables(numbers, rules)
        begin = [np.zeros((group.tensors, group.inputs + 2), np.int64), *results]
        tabled = sum(t.nbytes for t in tables)
        self._tables_and_results = scratch.take(tabled + sum(r.nbytes for r in begin), mirrored=True)
        self._results_at = tabled
        self.launches: list[KernelLaunch] = []  # one for each table
        at = 0
        for table in tables:
            self.launches.append(
                table.write(
                    self._tables_and_results.host[at : at + table.nbytes], self._tables_and_results.address + at
                )
            )
            at += table.nbytes
        self.results: list[np.ndarray] = []  # views of the mirror: valid after the event of `fetch`
        self._addresses = []
        for array in begin:
            view = self._tables_and_results.view(at, array.shape, array.dtype)
            view[...] = array
            self.results.append(view)
            self._addresses.append(self._tables_and_results.address + at)
            at += array.nbytes
        self._tables_and_results.send(self.stream)

    def _tiles(self) -> list[Tile]:
        return self.residency.tiles(self.group.tasks)

    def _tables(self, numbers: Callable[[int], Any] | None, rules: Callable[[int], Any] | None) -> list[Table]:
        return [self.group.table(tile, numbers, rules) for tile in self.tiles]

    def address(self, result: int) -> int:
        """Of the `result`-th array of `results` on the device, from 0 on."""
        return self._addresses[result + 1]

    @property
    def nonfinite(self) -> int:
        return self._addresses[0]

    def zeros(self, *shape: int, itemsize: int = 8) -> int:
        """Address of zeroed device memory for so many items."""
        memory: ScratchMemory = self.scratch.take(int(np.prod(shape, dtype=np.int64)) * itemsize)
        memory.zero(self.stream)
        return memory.address

    def upload(self, array: np.ndarray) -> int:
        memory = self.scratch.take(array.nbytes, mirrored=True)
        memory.host[...] = array.reshape(-1).view(np.uint8)
        memory.send(self.stream)
        return memory.address

    def fetch(self) -> Any:
        self._tables_and_results.fetch(self.stream, self._results_at)
        return self.stream.record()

    def sweep(self, kernel: Callable[..., None], *arguments: Any) -> None:
        self.residency.sweep(self.tiles, lambda stream, n: kernel(stream, self.launches[n], *arguments))

    def combine(self, kernel: Callable[..., None], *arguments: Any) -> Any:
        return self.residency.combine(self.tiles, lambda stream, n: kernel(stream, self.launches[n], *arguments))

    def nonfinite_of(self, tensor: int) -> tuple[int, ...]:
        row = tuple(int(n) for n in self.results[0][tensor])
        return row if any(row) else ()
