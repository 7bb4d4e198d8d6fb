"""Runs a plan: from input files through the engine to a published model directory."""

from __future__ import annotations

import contextlib
import gc
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from .. import _core
from ..errors import CheckpointError, MergeError
from ..models import OutputDirectory
from ..models.sidecars import manifest
from ..plan.file_plan import Plan, index_text
from ..tasks import FileSink, TensorTask
from . import loop, model_scope
from .read_ahead import ReadAhead

NEW_OBJECTS = 50_000  # after which Python looks for circles; its default is 700
Progress = Callable[[int, int], None]  # bytes read so far, bytes to read in all


class _Run:
    """The state of one run: what is written where, and what is left of each shard."""

    def __init__(self, plan: Plan, directory: OutputDirectory, background: Any) -> None:
        self.plan, self.directory, self.background = plan, directory, background
        self.digests = array("Q", bytes(8 * len(plan.jobs)))
        self.rows: list[list[int]] = [[] for _ in plan.shards]
        for row, number in enumerate(plan.shard_of):
            self.rows[number].append(row)
        self.left = [len(rows) for rows in self.rows]

    def take_finished(self, finished: Mapping[str, Sequence[int]]) -> list[int]:
        """Credits the shards of an interrupted run; returns the rows that remain."""
        for shard, rows in zip(self.plan.shards, self.rows, strict=True):
            for row, digest in zip(rows, finished.get(shard.name, ()), strict=False):
                self.digests[row] = digest
        names = [shard.name for shard in self.plan.shards]
        return [row for row, number in enumerate(self.plan.shard_of) if names[number] not in finished]

    def tasks(self, rows: Sequence[int]) -> Iterator[TensorTask]:
        plan, jobs = self.plan, self.plan.jobs
        ahead = ReadAhead(jobs, rows, self.background)
        background = self.background if self.directory.sync else None
        offsets = plan.layout.offsets
        for number, row in enumerate(rows):
            ahead.advance(number)
            shard = plan.shards[plan.shard_of[row]]
            file = self.directory.shard(shard.name)
            yield TensorTask(jobs.group(row), row, (FileSink(file, offsets[row], background),))

    def done(self, task: TensorTask, digest: int) -> None:
        number = self.plan.shard_of[task.row]
        self.digests[task.row] = digest
        self.left[number] -= 1
        if self.left[number] == 0:
            digests = [self.digests[row] for row in self.rows[number]]
            self.directory.finish_shard(self.plan.shards[number].name, digests)


@contextlib.contextmanager
def _few_collections() -> Iterator[None]:
    """Python looks for circles of references less often while it is within.

    A merge makes millions of objects that live for a batch, and none of them is in a circle. Of a merge of 100,000
    small tensors the collector took a fifth of the time: it went through all that was there before again and again.
    """
    threshold, *others = gc.get_threshold()
    freezes = not gc.get_freeze_count()  # else somebody has chosen what is not looked at
    if freezes:
        gc.freeze()
    gc.set_threshold(threshold and max(threshold, NEW_OBJECTS), *others)
    try:
        yield
    finally:
        gc.set_threshold(threshold, *others)
        if freezes:
            gc.unfreeze()


def run_plan(plan: Plan, directory: OutputDirectory, backend: Any, progress: Progress | None = None) -> int:
    """Merges and publishes. Returns how many shards an interrupted run had already finished."""
    background = _core.Background()
    jobs, total = plan.jobs, plan.read_bytes
    checked = 0

    def credit(nbytes: int) -> None:
        """What is read again stands for what need not be merged."""
        nonlocal checked
        checked += nbytes
        if progress:
            progress(total * checked // plan.write_bytes, total)

    try:
        finished = directory.open(plan.shards, index_text(plan), credit)
        if directory.finished:
            directory.close()
            return len(plan.shards)
        directory.stage(plan.sidecars.ready)
        run = _Run(plan, directory, background)
        rows = run.take_finished(finished)
        done = total - plan.left_bytes(rows) if finished else 0

        def advance(nbytes: int) -> None:
            nonlocal done
            done += nbytes
            if progress:
                progress(done, total)

        try:
            with backend.guard(), _few_collections():
                solved = model_scope.decided(jobs, range(len(jobs)), backend, advance) if rows else None
                loop.run(run.tasks(rows), backend, run.done, advance, solved)
            advance(total - done)  # what turned out not to need all its passes
        except MergeError:
            raise
        except OSError as error:
            raise directory.error(error) from None
        directory.stage(manifest(plan, run.digests))
        plan.check()
        directory.publish()
    except BaseException as error:
        # No resume can use the shards of a merge whose inputs are at fault.
        kept = directory.abort(keep=not isinstance(error, CheckpointError))
        if not isinstance(error, KeyboardInterrupt):
            raise
        if directory.published:
            raise KeyboardInterrupt(f"interrupted while {directory.path} was published; it is complete.") from None
        again = f" {kept} of {len(plan.shards)} shards are finished; --resume keeps them." if kept else ""
        raise KeyboardInterrupt(f"interrupted; nothing was published.{again}") from None
    return len(finished)
