"""Runs formulas on a GPU. The data of their programs stay in device memory; values and ranks live in scratch.

What is measured of a formula's values is measured by the kernels for inputs, over scratch. The scratch is bounded: a
tile is worked through in smaller ones, whose values take turns in it, each evaluated before it is measured. Values that
are still there from the last sweep are not evaluated again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ...expr.program import Program
from ...requests import Map
from ...tasks import TensorTask
from ..primitives import Bins, ColumnFolds, RowFolds
from .code import Code, file_bytes, packed
from .execution import POLICIES, Execution, LaunchGroup
from .residency import ValueScratch
from .scratch import Scratch
from .tables import BLOCK, PHILOX_LANES, VECTOR, Kind, SegmentRow, Table, is_aligned, rule_rows
from .tiles import CHUNK_ENDS, Segment, SegmentEnds, Tile

FLOAT32, FLOAT64 = 0, 3  # dtype codes
BLOCK_ENDS = SegmentEnds(BLOCK)


class ValueSegment(NamedTuple):
    """Elements [first, first + count) of a segment's tensor; `nbytes`: of scratch for their values and ranks."""

    segment: Segment
    tensor: int
    first: int
    count: int  # type: ignore[assignment]
    nbytes: int


class ValueTile:
    """Segments whose values lie in scratch together. Launches are numbered as in `Execution.launches`."""

    def __init__(self) -> None:
        self.segments: list[ValueSegment] = []
        self.nbytes = 0
        self.longest = 0  # elements of a row
        self.evaluate = self.measure = -1
        self.scratch: ValueScratch | None = None
        self.token = object()  # what the scratch holds when it holds this tile's values

    def add(self, segment: ValueSegment, columns: int) -> None:
        self.segments.append(segment)
        self.nbytes += segment.nbytes
        self.longest = max(self.longest, columns)


def segment_ends(request: Any, program: Program) -> SegmentEnds | None:
    """Where a segment may end for this request; None: where any may."""
    columns = program.columns
    if isinstance(request, RowFolds) and not program.ranked:
        return SegmentEnds(request.columns, within=True)
    if isinstance(request, ColumnFolds) or (isinstance(request, RowFolds) and request.columns == columns):
        return SegmentEnds(request.columns, within=False)
    if not program.ranked:
        return None
    # Whole rows, but also whole blocks of the reduction order, or what one call of Philox decides.
    return SegmentEnds(math.lcm(columns, PHILOX_LANES if isinstance(request, Map | Bins) else BLOCK))


class FormulaExecution(Execution):
    """`sweep` calls its kernel on the values of the formula as inputs; `evaluate` lets the formula write results."""

    def __init__(
        self,
        group: LaunchGroup,
        residency: Any,
        kernels: Any,
        scratch: Scratch,
        *,
        results: Sequence[np.ndarray] = (),
        rules: Callable[[int], Any] | None = None,
    ) -> None:
        """`rules`: rules of what measures the values. `results`: see Execution."""
        self.program: Any = group.programs[0]
        self._ranked = len(self.program.ranked)
        self._values = 0 if group.combines else len(self.program.outputs)
        self._width = 8 if group.kind.fp64 else 4
        self._ends = [segment_ends(r, p) for r, p in zip(group.requests, group.programs, strict=True)]
        self._value_tiles: list[list[ValueTile]] = []  # of each tile
        self._counted = False
        super().__init__(group, residency, kernels, scratch, results=results, rules=rules)
        code = self.upload(packed(self.program))
        nbytes = file_bytes(self.program, group.kind.fp64, residency.value_scratch_bytes // 2)
        self._codes = []  # of the tiles whose numbers are even and odd, as they may be worked on at the same time
        for _ in range(2 if nbytes and len(self.tiles) > 1 else 1):
            self._codes.append(Code(self.program, code, scratch.take(nbytes).address if nbytes else 0, nbytes))

    # --- tiles and their tables --------------------------------------------------------------------------------------

    def _tiles(self) -> list[Tile]:
        def ends_of(task: TensorTask) -> SegmentEnds:
            return self._ends[self.group.tensor_of[id(task)]] or CHUNK_ENDS

        return self.residency.tiles(self.group.tasks, ends_of)

    def _value_bytes(self, tensor: int, count: int) -> int:
        """Bytes of scratch for the values and ranks of so many elements of a tensor."""
        arrays = (self._values + self._ranked) * _padded(count * self._width)
        return arrays + (_padded(8 * count) if self._is_long(tensor) else 0)

    def _is_long(self, tensor: int) -> bool:
        return self._ranked > 0 and self.group.programs[tensor].columns > self.kernels.long_row(self.group.kind.fp64)

    def _value_tiles_of(self, tile: Tile, capacity: int) -> list[ValueTile]:
        found = [ValueTile()]
        for segment in tile.segments:
            tensor = self.group.tensor_of[id(segment.task)]
            columns = self.group.programs[tensor].columns
            ends = self._ends[tensor] or BLOCK_ENDS
            first, end = segment.first, segment.first + segment.count
            bits = self._value_bytes(tensor, VECTOR)
            while first < end:
                last = found[-1]
                fits = (capacity - last.nbytes) // bits * VECTOR if bits else end - first
                count = ends.most(first, end, max(0, fits))
                if count == 0 and last.segments:
                    found.append(ValueTile())
                    continue
                count = count or ends.least(first, end)
                last.add(ValueSegment(segment, tensor, first, count, self._value_bytes(tensor, count)), columns)
                first += count
        return [v for v in found if v.segments]

    def _tables(self, numbers: Any, rules: Callable[[int], Any] | None) -> list[Table]:
        capacity = self.residency.value_scratch_bytes // (2 if len(self.tiles) > 1 else 1)
        vectors = self._upload_vectors()
        tables: list[Table] = []
        for number, tile in enumerate(self.tiles):
            value_tiles = self._value_tiles_of(tile, capacity)
            self._value_tiles.append(value_tiles)
            needed = max((v.nbytes for v in value_tiles), default=0)
            scratch = self.residency.value_scratch(number % 2, needed) if needed else None
            for value_tile in value_tiles:
                value_tile.scratch = scratch
                self._lay_out(value_tile, tables, vectors, rules)
        return tables

    def _lay_out(
        self, tile: ValueTile, tables: list[Table], vectors: list[list[int]], rules: Callable[[int], Any] | None
    ) -> None:
        at = tile.scratch.address if tile.scratch else 0
        rows, measured, words = [], [], []
        for one in tile.segments:
            program = self.group.programs[one.tensor]
            arrays = []
            for _ in range(self._values + self._ranked):
                arrays.append(at)
                at += _padded(one.count * self._width)
            values, ranks = arrays[: self._values], arrays[self._values :]
            long = self._is_long(one.tensor)
            words.append(
                [program.columns, at if long else 0, *map(_signed, program.keys), *vectors[one.tensor], *ranks]
            )
            at += _padded(8 * one.count) if long else 0
            rows.append(self._row(one, values))
            measured.append(self._measured_row(one, values))
        tensors = [one.tensor for one in tile.segments]
        program_rules = [rule_rows(self.group.programs[t].rules) for t in tensors]
        constants = np.array([self.group.programs[t].constants for t in tensors], np.float64)
        tile.evaluate = len(tables)
        tables.append(
            Table(self._kind(rows), rows, constants, np.array(program_rules, np.int64), np.array(words, np.int64))
        )
        if self._values:
            tile.measure = len(tables)
            measured_rules = None if rules is None else np.array([rules(t) for t in tensors], np.int64)
            tables.append(self._measuring(tile, measured, measured_rules))

    def _kind(self, rows: Sequence[SegmentRow]) -> Kind:
        kind = self.group.kind._replace(aligned=all(is_aligned(r.base, *r.inputs, *r.outputs) for r in rows))
        return kind._replace(out=self._code, outputs=self._values) if self._values else kind

    def _measured_kind(self) -> Kind:
        inputs = (self._code,) * self._values
        return Kind(inputs, -1, self._code, 0, self.group.kind.fp64, POLICIES["propagate"], True)

    @property
    def _code(self) -> int:
        """Of the dtype in which values are measured."""
        return FLOAT64 if self.group.kind.fp64 else FLOAT32

    def _row(self, one: ValueSegment, values: list[int]) -> SegmentRow:
        segment, task = one.segment, one.segment.task
        skipped = one.first - segment.first
        inputs = tuple(a + skipped * b.dtype.itemsize for a, b in zip(segment.inputs, task.inputs, strict=True))
        outputs = tuple(values) or tuple(a + skipped * task.out_dtype.itemsize for a in segment.outputs)
        base = segment.base + skipped * task.base.dtype.itemsize if self.group.kind.base >= 0 and task.base else 0
        return SegmentRow(one.count, one.first, one.tensor, 0, task.info.count, base, inputs, outputs)

    def _measured_row(self, one: ValueSegment, values: list[int]) -> SegmentRow:
        count = one.segment.task.info.count
        return SegmentRow(one.count, one.first, one.tensor, self.block(one), count, 0, tuple(values), ())

    def _measuring(self, tile: ValueTile, rows: Sequence[SegmentRow], rules: np.ndarray | None) -> Table:
        """The table by which the values of a tile are measured."""
        return Table(self._measured_kind(), rows, rules=rules)

    def block(self, one: ValueSegment) -> int:
        """Number of the first block in arrays of partial results."""
        return self.group.first_blocks[one.tensor] + one.first // BLOCK

    def _upload_vectors(self) -> list[list[int]]:
        """Addresses of the vectors of each tensor."""
        arrays = [[np.ascontiguousarray(v, np.float64) for v in p.vectors] for p in self.group.programs]
        nbytes = sum(a.nbytes for found in arrays for a in found)
        if not nbytes:
            return [[0] * len(found) for found in arrays]
        memory = self.scratch.take(nbytes, mirrored=True)
        at = 0
        addresses: list[list[int]] = []
        for found in arrays:
            addresses.append([])
            for array in found:
                memory.host[at : at + array.nbytes] = array.reshape(-1).view(np.uint8)
                addresses[-1].append(memory.address + at)
                at += array.nbytes
        memory.send(self.stream)
        return addresses

    # --- kernels -----------------------------------------------------------------------------------------------------

    @property
    def nonfinite(self) -> int:
        """The values are finite; what is not in the inputs is counted when the formula is evaluated first."""
        return 0

    def sweep(self, kernel: Callable[..., None], *arguments: Any) -> None:
        def measure(stream: Any, number: int) -> None:
            for tile in self._evaluated(stream, number):
                kernel(stream, self.launches[tile.measure], *arguments)

        self.residency.sweep(self.tiles, measure)
        self._counted = True

    def evaluate(self, agree: int) -> Any:
        def write(stream: Any, number: int) -> None:
            for _ in self._evaluated(stream, number, agree):
                pass

        return self.residency.combine(self.tiles, write)

    def _evaluated(self, stream: Any, number: int, agree: int = 0) -> Iterator[ValueTile]:
        code = self._codes[number % len(self._codes)]
        for tile in self._value_tiles[number]:
            scratch = tile.scratch
            if scratch is None or scratch.holds is not tile.token:
                launch = self.launches[tile.evaluate]
                for ordinal in range(self._ranked):
                    self.kernels.ranks(stream, launch, code, ordinal, tile.longest)
                counters = 0 if self._counted else super().nonfinite
                self.kernels.formula(stream, launch, code, self.group.combines, agree, counters)
                if scratch is not None:
                    scratch.holds = tile.token
            yield tile


def _padded(nbytes: int) -> int:
    return -(-nbytes // VECTOR) * VECTOR


def _signed(key: int) -> int:
    return key - 2**64 if key >= 2**63 else key
