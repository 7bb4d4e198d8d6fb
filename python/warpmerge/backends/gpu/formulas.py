"""Formulas on a flight: their programs' data in device memory, and values and ranks that exist for a moment only.

What is measured of a formula's values is measured by the kernels for inputs, over temporaries. These are bounded: loads
are worked through in pieces, one behind the other in the same memory, each evaluated before it is measured. A piece
that is still there from the last sweep is not evaluated again.
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
from .execution import POLICIES, Execution, Group
from .flight import Temporary
from .loads import CHUNKS, Cut, Load, Part
from .scratch import Scratch
from .tables import BLOCK, PHILOX_LANES, VECTOR, Kind, Segment, Table, is_aligned, keep_rows

FLOAT32, FLOAT64 = 0, 3  # dtype codes
BLOCKS = Cut(BLOCK)


class Slice(NamedTuple):
    """Elements [first, first + count) of a part's tensor; `memory`: bytes of their temporaries."""

    part: Part
    slot: int
    first: int
    count: int  # type: ignore[assignment]
    memory: int


class Piece:
    """Slices whose temporaries lie in memory together. Launches are numbered as in `Execution.launches`."""

    def __init__(self) -> None:
        self.slices: list[Slice] = []
        self.memory = 0
        self.longest = 0  # elements of a row
        self.evaluate = self.measure = -1
        self.temporary: Temporary | None = None
        self.token = object()  # what the temporary holds when it holds this piece

    def add(self, part: Slice, columns: int) -> None:
        self.slices.append(part)
        self.memory += part.memory
        self.longest = max(self.longest, columns)


def cut_of(request: Any, program: Program) -> Cut | None:
    """Where a tensor may be cut for this request; None: where any may be."""
    columns = program.columns
    if isinstance(request, RowFolds) and not program.ranked:
        return Cut(request.columns, within=True)
    if isinstance(request, ColumnFolds) or (isinstance(request, RowFolds) and request.columns == columns):
        return Cut(request.columns, within=False)
    if not program.ranked:
        return None
    # Whole rows, but also whole blocks of the reduction order, or what one call of Philox decides.
    return Cut(math.lcm(columns, PHILOX_LANES if isinstance(request, Map | Bins) else BLOCK))


class FormulaExecution(Execution):
    """`sweep` calls its kernel on the values of the formula as inputs; `evaluate` lets the formula write results."""

    def __init__(
        self,
        group: Group,
        flight: Any,
        kernels: Any,
        scratch: Scratch,
        *,
        results: Sequence[np.ndarray] = (),
        keeps: Callable[[int], Any] | None = None,
    ) -> None:
        """`keeps`: rules of what measures the values. `results`: see Execution."""
        self.program: Any = group.programs[0]
        self._ranked = len(self.program.ranked)
        self._values = 0 if group.combines else len(self.program.outputs)
        self._width = 8 if group.kind.fp64 else 4
        self._cuts = [cut_of(r, p) for r, p in zip(group.requests, group.programs, strict=True)]
        self._pieces: list[list[Piece]] = []  # of each load
        self._counted = False
        super().__init__(group, flight, kernels, scratch, results=results, keeps=keeps)
        code = self.upload(packed(self.program))
        nbytes = file_bytes(self.program, group.kind.fp64, flight.temporary_bytes // 2)
        self._codes = []  # of the loads whose numbers are even and odd, as they may be worked on at the same time
        for _ in range(2 if nbytes and len(self.loads) > 1 else 1):
            self._codes.append(Code(self.program, code, scratch.take(nbytes).address if nbytes else 0, nbytes))

    # --- loads, pieces, tables ---------------------------------------------------------------------------------------

    def _loads(self) -> list[Load]:
        def cut(task: TensorTask) -> Cut:
            return self._cuts[self.group.slot_of[id(task)]] or CHUNKS

        return self.flight.loads(self.group.tasks, cut)

    def _memory(self, slot: int, count: int) -> int:
        """Bytes of the temporaries of so many elements of a slot."""
        arrays = (self._values + self._ranked) * _padded(count * self._width)
        return arrays + (_padded(8 * count) if self._is_long(slot) else 0)

    def _is_long(self, slot: int) -> bool:
        return self._ranked > 0 and self.group.programs[slot].columns > self.kernels.long_row(self.group.kind.fp64)

    def _pieces_of(self, load: Load, capacity: int) -> list[Piece]:
        pieces = [Piece()]
        for part in load.parts:
            slot = self.group.slot_of[id(part.task)]
            columns = self.group.programs[slot].columns
            cut = self._cuts[slot] or BLOCKS
            first, end = part.first, part.first + part.count
            bits = self._memory(slot, VECTOR)
            while first < end:
                piece = pieces[-1]
                fits = (capacity - piece.memory) // bits * VECTOR if bits else end - first
                count = cut.most(first, end, max(0, fits))
                if count == 0 and piece.slices:
                    pieces.append(Piece())
                    continue
                count = count or cut.least(first, end)
                piece.add(Slice(part, slot, first, count, self._memory(slot, count)), columns)
                first += count
        return [p for p in pieces if p.slices]

    def _tables(self, numbers: Any, keeps: Callable[[int], Any] | None) -> list[Table]:
        capacity = self.flight.temporary_bytes // (2 if len(self.loads) > 1 else 1)
        vectors = self._upload_vectors()
        tables: list[Table] = []
        for number, load in enumerate(self.loads):
            pieces = self._pieces_of(load, capacity)
            self._pieces.append(pieces)
            needed = max((p.memory for p in pieces), default=0)
            temporary = self.flight.temporary(number % 2, needed) if needed else None
            for piece in pieces:
                piece.temporary = temporary
                self._lay_out(piece, tables, vectors, keeps)
        return tables

    def _lay_out(
        self, piece: Piece, tables: list[Table], vectors: list[list[int]], keeps: Callable[[int], Any] | None
    ) -> None:
        at = piece.temporary.address if piece.temporary else 0
        segments, measured, words = [], [], []
        for one in piece.slices:
            program = self.group.programs[one.slot]
            arrays = []
            for _ in range(self._values + self._ranked):
                arrays.append(at)
                at += _padded(one.count * self._width)
            values, ranks = arrays[: self._values], arrays[self._values :]
            long = self._is_long(one.slot)
            words.append([program.columns, at if long else 0, *map(_signed, program.keys), *vectors[one.slot], *ranks])
            at += _padded(8 * one.count) if long else 0
            segments.append(self._segment(one, values))
            measured.append(self._measured(one, values))
        slots = [one.slot for one in piece.slices]
        rules = [keep_rows(self.group.programs[s].rules) for s in slots]
        constants = np.array([self.group.programs[s].constants for s in slots], np.float64)
        piece.evaluate = len(tables)
        tables.append(
            Table(self._kind(segments), segments, constants, np.array(rules, np.int64), np.array(words, np.int64))
        )
        if self._values:
            piece.measure = len(tables)
            rows = None if keeps is None else np.array([keeps(s) for s in slots], np.int64)
            tables.append(self._measuring(piece, measured, rows))

    def _kind(self, segments: Sequence[Segment]) -> Kind:
        kind = self.group.kind._replace(aligned=all(is_aligned(s.base, *s.inputs, *s.outputs) for s in segments))
        return kind._replace(out=self._code, outputs=self._values) if self._values else kind

    def _measured_kind(self) -> Kind:
        inputs = (self._code,) * self._values
        return Kind(inputs, -1, self._code, 0, self.group.kind.fp64, POLICIES["propagate"], True)

    @property
    def _code(self) -> int:
        """Of the dtype in which values are measured."""
        return FLOAT64 if self.group.kind.fp64 else FLOAT32

    def _segment(self, one: Slice, values: list[int]) -> Segment:
        part, task = one.part, one.part.task
        skipped = one.first - part.first
        inputs = tuple(a + skipped * b.dtype.itemsize for a, b in zip(part.inputs, task.inputs, strict=True))
        outputs = tuple(values) or tuple(a + skipped * task.out_dtype.itemsize for a in part.outputs)
        base = part.base + skipped * task.base.dtype.itemsize if self.group.kind.base >= 0 and task.base else 0
        return Segment(one.count, one.first, one.slot, 0, task.info.count, base, inputs, outputs)

    def _measured(self, one: Slice, values: list[int]) -> Segment:
        count = one.part.task.info.count
        return Segment(one.count, one.first, one.slot, self.block(one), count, 0, tuple(values), ())

    def _measuring(self, piece: Piece, segments: Sequence[Segment], keeps: np.ndarray | None) -> Table:
        """The table by which the values of a piece are measured."""
        return Table(self._measured_kind(), segments, keeps=keeps)

    def block(self, one: Slice) -> int:
        """Number of the first block in arrays of partial results."""
        return self.group.first_blocks[one.slot] + one.first // BLOCK

    def _upload_vectors(self) -> list[list[int]]:
        """Addresses of the vectors of each slot."""
        arrays = [[np.ascontiguousarray(v, np.float64) for v in p.vectors] for p in self.group.programs]
        nbytes = sum(a.nbytes for found in arrays for a in found)
        if not nbytes:
            return [[0] * len(found) for found in arrays]
        span = self.scratch.take(nbytes, mirrored=True)
        at = 0
        addresses: list[list[int]] = []
        for found in arrays:
            addresses.append([])
            for array in found:
                span.host[at : at + array.nbytes] = array.reshape(-1).view(np.uint8)
                addresses[-1].append(span.address + at)
                at += array.nbytes
        span.send(self.stream)
        return addresses

    # --- kernels -----------------------------------------------------------------------------------------------------

    @property
    def nonfinite(self) -> int:
        """The values are finite; what is not in the inputs is counted when the formula is evaluated first."""
        return 0

    def sweep(self, kernel: Callable[..., None], *arguments: Any) -> None:
        def measure(stream: Any, number: int) -> None:
            for piece in self._evaluated(stream, number):
                kernel(stream, self.launches[piece.measure], *arguments)

        self.flight.sweep(self.loads, measure)
        self._counted = True

    def evaluate(self, agree: int) -> Any:
        def write(stream: Any, number: int) -> None:
            for _ in self._evaluated(stream, number, agree):
                pass

        return self.flight.combine(self.loads, write)

    def _evaluated(self, stream: Any, number: int, agree: int = 0) -> Iterator[Piece]:
        code = self._codes[number % len(self._codes)]
        for piece in self._pieces[number]:
            kept = piece.temporary
            if kept is None or kept.holds is not piece.token:
                launch = self.launches[piece.evaluate]
                for ordinal in range(self._ranked):
                    self.kernels.ranks(stream, launch, code, ordinal, piece.longest)
                counters = 0 if self._counted else super().nonfinite
                self.kernels.formula(stream, launch, code, self.group.combines, agree, counters)
                if kept is not None:
                    kept.holds = piece.token
            yield piece


def _padded(nbytes: int) -> int:
    return -(-nbytes // VECTOR) * VECTOR


def _signed(key: int) -> int:
    return key - 2**64 if key >= 2**63 else key
