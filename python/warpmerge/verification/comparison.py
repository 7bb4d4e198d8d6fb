"""Compares the tensors that two models have in common: bits with numpy, distances with the engine's measurements.

Tensors are taken in batches that fit into the page cache, so what differs is read from the disk once and measured from
memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from .. import _core, backends
from ..engine import loop
from ..engine.read_ahead import ReadAhead
from ..expr.expression import delta, equal, where
from ..models.view_columns import Model, ViewColumn
from ..models.views import View
from ..plan.jobs import make_jobs
from ..requests import Reduce
from ..tasks import Jobs, TensorTask
from ..threads import thread_count
from .bits import count_differing

BATCH = 256 << 20  # bytes of both models
PIECE = 1 << 20  # bytes of one model that a thread compares at a time
PROPAGATE = {"nonfinite": "propagate"}

_A, _B = delta(0), delta(1)
_APART = _A - _B
_UNEQUAL = where(equal(_A, _B), 0, where(equal(_A, _A), 1, where(equal(_B, _B), 1, 0)))  # two NaNs are equal
_NOT_FINITE = where(equal(_APART - _APART, 0), 0, _UNEQUAL)
# Values that are not finite count as 0 in every measurement.
_SUMS = Reduce(
    "sum",
    (_APART, _A, _B, _NOT_FINITE),
    accumulator="float64",
    pairs=((0, 0), (1, 1), (2, 2), (1, 2), (3, 3)),
    on_deltas=False,
)
_LARGEST = Reduce("max", (abs(_APART),), on_deltas=False)
_COUNT = Reduce("count", (_UNEQUAL,), on_deltas=False)


class Measures(NamedTuple):
    """Of the elements of two tensors a and b: max |a - b|, sums of (a - b)^2, a^2, b^2 and a b, and how many differ
    where one is not finite."""

    largest: float
    apart: float
    own: float
    other: float
    product: float
    not_finite: float


class Compared(NamedTuple):
    """A tensor that differs. `measures`: None if it is not of floating point."""

    name: str
    differing: int
    measures: Measures | None


class _Both:
    """Stands in for a method: its inputs are compared, never merged."""

    name, copies, auxiliary = "diff", True, ()


def compare(
    a: Model,
    b: Model,
    names: Sequence[str],
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Compared]:
    """The tensors of these names that differ; a and b have them in the same shapes. Floats may have other dtypes."""
    if not names:
        return
    backend = backends.create(backends.choose("cpu", "cpu"), threads=threads)
    comparison = _Comparison(_jobs(a, b, names), backend, thread_count(threads))
    total = sum(map(comparison.nbytes, range(len(names))))
    done = 0
    with backend.guard(), _core.Guard(comparison.stop):
        for rows in comparison.batches():
            yield from comparison.differing(rows)
            done += sum(map(comparison.nbytes, rows))
            if progress:
                progress(done, total)


def _jobs(a: Model, b: Model, names: Sequence[str]) -> Jobs:
    first, second = _Part(a, names), _Part(b, names)
    return make_jobs(
        _Both(),  # type: ignore[arg-type]
        first,
        [first, second],
        None,
        values=lambda name: PROPAGATE,
        out_kinds=lambda kinds: kinds,
        labels=lambda name: (a.title, b.title),
    )


class _Part:
    """Some tensors of a model."""

    def __init__(self, model: Model, names: Sequence[str]) -> None:
        self.title, self.names, self._model = model.title, names, model

    def column(self, names: Sequence[str]) -> Any:
        return self._model.column(names)

    def is_quantized(self) -> bool:
        return False  # codes are compared like any other bytes


class _Comparison:
    """Rows of the jobs are tensors; each group reads those of both models."""

    def __init__(self, jobs: Jobs, backend: Any, threads: int) -> None:
        self._jobs, self._backend = jobs, backend
        self._threads = ThreadPoolExecutor(threads, "compare")
        self._ahead = ReadAhead(jobs, range(len(jobs)), _core.Background())

    def stop(self) -> None:
        self._threads.shutdown(cancel_futures=True)

    def nbytes(self, row: int) -> int:
        return self._jobs.read_bytes(row)

    def batches(self) -> Iterator[list[int]]:
        rows: list[int] = []
        size = 0
        for row in range(len(self._jobs)):
            self._ahead.advance(row)
            rows.append(row)
            size += self.nbytes(row)
            if size >= BATCH:
                yield rows
                rows, size = [], 0
        if rows:
            yield rows

    def differing(self, rows: Sequence[int]) -> list[Compared]:
        """Those of the rows that differ."""
        mixed = {row for row in rows if len({column.dtype(row) for column in self._columns(row)}) > 1}
        counts = self._bits([row for row in rows if row not in mixed]) | self._values(sorted(mixed))
        differing = [row for row in rows if counts[row] or row in mixed]
        floats = [row for row in differing if self._columns(row)[0].dtype(row).is_float]
        measures = dict(zip(floats, self._measured(floats), strict=True))
        return [Compared(self._jobs.names[row], counts[row], measures.get(row)) for row in differing]

    def _columns(self, row: int) -> Sequence[ViewColumn]:
        return self._jobs.group(row).columns

    def _bits(self, rows: Iterable[int]) -> dict[int, int]:
        """Of each row how many elements have other bits. Both models have it in one dtype."""
        counts = dict.fromkeys(rows, 0)
        loads = list(self._loads(counts))
        for load, found in zip(loads, self._threads.map(_differing_in, loads), strict=True):
            for piece, differing in zip(load, found, strict=True):
                counts[piece.row] += differing
        return counts

    def _loads(self, rows: Iterable[int]) -> Iterator[list[_Piece]]:
        """Pieces for a thread to compare: one, or many small ones."""
        load: list[_Piece] = []
        size = 0
        for row in rows:
            for piece in self._pieces(row):
                load.append(piece)
                size += piece.elements * piece.a.dtype.itemsize
                if size >= PIECE:
                    yield load
                    load, size = [], 0
        if load:
            yield load

    def _pieces(self, row: int) -> Iterator[_Piece]:
        a, b = (column.view(row) for column in self._columns(row))
        step = PIECE // a.dtype.itemsize
        for start in range(0, a.count, step):
            yield _Piece(row, a, b, start, min(step, a.count - start))

    def _values(self, rows: Sequence[int]) -> dict[int, int]:
        """Of each row how many elements have other values."""
        return {row: found[0] for row, found in zip(rows, self._measure(_COUNT, rows), strict=True)}

    def _measured(self, rows: Sequence[int]) -> Iterator[Measures]:
        for (largest,), sums in zip(self._measure(_LARGEST, rows), self._measure(_SUMS, rows), strict=True):
            yield Measures(largest, *sums)

    def _measure(self, request: Reduce, rows: Sequence[int]) -> list[Any]:
        return list(loop.measure(((TensorTask(self._jobs.group(row), row), request) for row in rows), self._backend))


class _Piece(NamedTuple):
    row: int
    a: View
    b: View
    start: int
    elements: int


def _differing_in(load: Sequence[_Piece]) -> list[int]:
    return [
        count_differing(
            piece.a.read(piece.start, piece.elements),
            piece.b.read(piece.start, piece.elements),
            piece.a.dtype.itemsize,
        )
        for piece in load
    ]
