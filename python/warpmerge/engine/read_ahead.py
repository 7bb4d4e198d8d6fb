"""Asks for input bytes in the order in which they will be needed, a window ahead of the merge."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..models.views import View
from ..plan.file_plan import Job

WINDOW = 256 << 20  # bytes: what a fast disk reads in the time that the merge takes for the batches in flight
STEP = 8 << 20  # bytes of one request; a large tensor's inputs take turns


class ReadAhead:
    """`advance(n)` is called before job n is started. Neighbouring small tensors of a file become one request."""

    def __init__(self, jobs: list[Job], background: Any) -> None:
        self._ranges = _ranges(jobs)
        self._background = background
        self._ends = []  # bytes that lie before each job
        total = 0
        for job in jobs:
            self._ends.append(total)
            total += job.read_bytes
        self._asked = 0

    def advance(self, index: int) -> None:
        goal = self._ends[index] + WINDOW
        while self._asked < goal:
            request = next(self._ranges, None)
            if request is None:
                self._asked = 2**63
                return
            fd, offset, nbytes = request
            self._background.read_ahead(fd, offset, nbytes)
            self._asked += nbytes


def _ranges(jobs: list[Job]) -> Iterator[tuple[int, int, int]]:
    pending: dict[int, tuple[int, int]] = {}
    for job in jobs:
        for fd, offset, nbytes in _in_turn(job.views):
            first, length = pending.get(fd, (offset, 0))
            if length and (first + length != offset or length + nbytes > STEP):
                yield fd, first, length
                first, length = offset, 0
            pending[fd] = (first, length + nbytes)
    for fd, (first, length) in pending.items():
        yield fd, first, length


def _in_turn(views: list[View]) -> Iterator[tuple[int, int, int]]:
    """What these views read from files, STEP bytes of each at a time."""
    for start in range(0, max((view.nbytes for view in views), default=0), STEP):
        for view in views:
            size = view.dtype.itemsize
            if start < view.nbytes:
                yield from view.ranges(start // size, min(STEP, view.nbytes - start) // size)
