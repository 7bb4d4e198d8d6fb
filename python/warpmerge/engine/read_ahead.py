"""Asks for input bytes in the order in which they will be needed, a window ahead of the merge."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, chain
from typing import Any

from ..models.view_columns import ViewColumn
from ..models.views import Range
from ..tasks import Jobs

WINDOW = 256 << 20  # bytes: what a fast disk reads in the time that the merge takes for the batches in flight
STEP = 8 << 20  # bytes of one request; a large tensor's inputs take turns


class ReadAhead:
    """`advance(n)` is called before the n-th of these rows is started. Neighbouring small tensors of a file become one
    request."""

    def __init__(self, jobs: Jobs, rows: Sequence[int], background: Any) -> None:
        self._ranges = _ranges(jobs, rows)
        self._background = background
        self._ends = list(accumulate((jobs.read_bytes(row) for row in rows), initial=0))  # bytes before each row
        self._asked = 0

    def advance(self, index: int) -> None:
        goal = self._ends[index] + WINDOW
        while self._asked < goal:
            request = next(self._ranges, None)
            if request is None:
                self._asked = 2**63
                return
            self._background.read_ahead(*request)
            self._asked += request[2]


def _ranges(jobs: Jobs, rows: Sequence[int]) -> Iterator[Range]:
    pending: dict[Any, tuple[int, int]] = {}
    for row in rows:
        group = jobs.group(row)
        large = group.read_bytes[row] > STEP
        for file, offset, nbytes in _in_turn(group.columns, row) if large else _whole(group.columns, row):
            first, length = pending.get(file, (offset, 0))
            if length and (first + length != offset or length + nbytes > STEP):
                yield file, first, length
                first, length = offset, 0
            pending[file] = (first, length + nbytes)
    for file, (first, length) in pending.items():
        yield file, first, length


def _whole(columns: Sequence[ViewColumn], row: int) -> Iterable[Range]:
    """What a row's views read from files, one view after the other."""
    return chain.from_iterable([column.ranges(row) for column in columns])


def _in_turn(columns: Sequence[ViewColumn], row: int) -> Iterator[Range]:
    """What a row's views read from files, STEP bytes of each at a time."""
    sizes = [column.nbytes(row) for column in columns]
    for start in range(0, max(sizes, default=0), STEP):
        for column, nbytes in zip(columns, sizes, strict=True):
            if start < nbytes:
                yield from column.ranges(row, start, min(STEP, nbytes - start))
