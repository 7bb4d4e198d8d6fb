"""Runs a plan: from input files through the engine to a published model directory."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from .. import __version__, _core
from ..errors import CheckpointError, MergeError
from ..methods import TensorInfo
from ..models import OutputDirectory
from ..models.sidecars import CARD, MANIFEST, card, manifest, sidecars
from ..models.views import View
from ..plan.file_plan import Job, Plan, index_document
from ..tasks import FileSink, TensorTask, same_bytes
from . import loop as engine
from . import model_scope
from .read_ahead import ReadAhead

Progress = Callable[[int, int], None]  # bytes read so far, bytes to read in all


class _Run:
    """The state of one run: what is written where, and what is left of each shard."""

    def __init__(self, plan: Plan, directory: OutputDirectory, background: Any, total: int) -> None:
        self.plan, self.directory, self.background = plan, directory, background
        self.digests: dict[str, str] = {}
        self.names: list[list[str]] = [[] for _ in plan.shards]
        for job in plan.jobs:
            self.names[job.shard].append(job.name)
        self.left = [len(names) for names in self.names]
        self.total = total

    def take_finished(self, finished: Mapping[str, Mapping[str, str]]) -> list[Job]:
        """Credits the shards of an interrupted run; returns the jobs that remain."""
        for digests in finished.values():
            self.digests.update(digests)
        return [job for job in self.plan.jobs if self.plan.shards[job.shard].name not in finished]

    def tasks(self, jobs: list[Job]) -> Iterator[TensorTask]:
        ahead = ReadAhead(jobs, self.background)
        for number, job in enumerate(jobs):
            ahead.advance(number)
            task = self._task(job)
            shard = self.plan.shards[job.shard]
            fd = self.directory.shard(shard.name, shard.header, shard.nbytes)
            task.sinks = [FileSink(fd, job.entry.offset, self.background if self.directory.sync else None)]
            yield task

    def measured(self) -> Iterator[TensorTask]:
        """Tasks of all tensors that are merged, without sinks."""
        return (self._task(job) for job in self.plan.jobs if job.values is not None)

    def _task(self, job: Job) -> TensorTask:
        labels = self.plan.labels
        inputs = [_agreed(job, labels)] if job.values is None else job.inputs
        count, models = job.entry.count, len(inputs) - len(job.auxiliary)
        return TensorTask(
            info=TensorInfo(job.name, count, models, self.plan.seed, job.shape, job.fp64, job.auxiliary),
            method=self.plan.recipe.method if job.values is not None else None,
            values=job.values if job.values is not None else {"nonfinite": "propagate"},
            inputs=inputs,
            base=job.base,
            out_dtype=job.dtype,
            sinks=[],
            labels=labels,
            fp64=job.fp64,
            done=lambda digest: self._done(job, digest),
        )

    def _done(self, job: Job, digest: int) -> None:
        self.digests[job.name] = f"{digest:016x}"
        self.left[job.shard] -= 1
        if self.left[job.shard] == 0:
            mine = {name: self.digests[name] for name in self.names[job.shard]}
            self.directory.finish_shard(self.plan.shards[job.shard].name, mine)


def _solved(run: _Run, jobs: list[Job], backend: Any, progress: engine.Progress) -> Iterator[TensorTask]:
    """The tasks of these jobs; where the method decides once for the whole model, with what it decided."""
    plan = run.plan
    scoped = next((j for j in plan.jobs if j.values is not None and model_scope.wanted(j.values)), None)
    if scoped is None or not jobs:
        yield from run.tasks(jobs)
        return
    model = model_scope.ModelScope(run.measured(), backend, progress)
    combination = model.solve(plan.recipe.method)
    for task in run.tasks(jobs):
        if task.method is not None:
            task.solved, task.fp64 = combination(task.info.name), model.fp64
        yield task


def _agreed(job: Job, labels: list[str]) -> View:
    """The one source of a tensor that is never averaged."""
    first, *others = job.inputs
    for view, label in zip(others, labels[1:], strict=False):
        if not same_bytes([first, view]):
            raise CheckpointError(
                f"tensor '{job.name}' ({job.dtype}) differs between '{labels[0]}' and '{label}' and cannot be "
                "averaged; name a base_model to take it from."
            )
    return first


def _unreadable(plan: Plan) -> CheckpointError:
    for shard in (s for c in plan.checkpoints for s in c.shards):
        if os.fstat(shard.fd).st_size != shard.size:
            return CheckpointError(f"{shard.path} changed while it was being read.")
    return CheckpointError("an input file could not be read; is its disk failing?")


def run_plan(plan: Plan, directory: OutputDirectory, backend: Any, progress: Progress | None = None) -> int:
    """Merges and publishes. Returns how many shards an interrupted run had already finished."""
    background = _core.Background()
    finished = directory.open(plan.fingerprint(), plan.write_bytes)
    resumed = len(finished)
    try:
        run = _Run(plan, directory, background, plan.read_bytes)
        jobs = run.take_finished(finished)
        done = run.total - sum(j.read_bytes * plan.passes(j) for j in jobs)

        def advance(nbytes: int) -> None:
            nonlocal done
            done += nbytes
            if progress:
                progress(done, run.total)

        try:
            engine.run(_solved(run, jobs, backend, advance), backend, advance)
            advance(run.total - done)  # what turned out not to need all its passes
        except MergeError:
            raise
        except OSError as error:
            if error.errno == errno.EFAULT:
                raise _unreadable(plan) from None
            raise directory.error(error) from None
        background.drain()
        dtypes = plan.dtypes
        main = max((d for d in dtypes if d.is_float), key=lambda d: dtypes[d], default=None)
        files = {
            **sidecars(plan.metadata_source.path, plan.metadata_source.config(), main),
            CARD: card(plan),
            MANIFEST: manifest(plan, __version__, run.digests),
        }
        index = index_document(plan) if len(plan.shards) > 1 else None
        directory.publish([s.name for s in plan.shards], index, files)
    except BaseException as error:
        background.cancel()
        background.drain()
        # No resume can use the shards of a merge whose inputs are at fault.
        kept = directory.abort(keep=not isinstance(error, CheckpointError))
        if isinstance(error, KeyboardInterrupt):
            again = f" {kept} of {len(plan.shards)} shards are finished; --resume keeps them." if kept else ""
            raise KeyboardInterrupt(f"interrupted; nothing was published.{again}") from None
        raise
    return resumed
