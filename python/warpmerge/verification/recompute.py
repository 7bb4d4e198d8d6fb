"""Merges tensors of a finished merge again, with the reference, and compares bits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from .. import __version__, backends
from ..engine import loop, model_scope
from ..errors import CheckpointError, UsageError
from ..models import Checkpoint
from ..plan.file_plan import Plan, make_plan
from ..tasks import MemorySink, TensorTask
from ..threads import thread_count
from .bits import count_differing
from .manifest import Manifest
from .sampling import some
from .sources import Sources

PIECE = 4 << 20  # bytes that are compared at a time


def recompute(
    manifest: Manifest,
    output: Checkpoint,
    count: int | None,
    seed: int,
    moved: Mapping[str, str | Path],
    threads: int | None,
) -> tuple[list[str], list[str]]:
    """Names of the tensors that were merged again, and what is wrong with them. `count` of None: all of them.

    Raises UsageError without torch, CheckpointError if a model is not what it was.
    """
    info = backends.choose("torch")
    sources = Sources(manifest, moved)
    sources.check()
    recipe = sources.recipe()
    try:
        plan = make_plan(recipe, seed=manifest.seed)
    except UsageError as error:
        raise CheckpointError(f"{manifest.path}: its recipe cannot be used: {error}") from None
    try:
        comparison = _Comparison(plan, output, manifest.version)
        rows = some(comparison.rows, count, seed)
        backend = backends.create(info, threads=thread_count(threads))
        with backend.guard():
            # A method that decides once for the whole model is given the whole model to measure.
            solved = model_scope.decided(plan.jobs, range(len(plan.jobs)), backend) if rows else None
            loop.run(comparison.tasks(rows), backend, comparison.compare, solved=solved)
        for checkpoint in plan.checkpoints:
            checkpoint.check()
        return [plan.jobs.names[row] for row in rows], comparison.problems
    finally:
        plan.close()


class _Comparison:
    """Of results with what lies in the output. `rows`: tensors of the plan that are there, in its dtype and shape."""

    def __init__(self, plan: Plan, output: Checkpoint, version: str) -> None:
        self._jobs, self._output, self._version = plan.jobs, output, version
        made = set(plan.jobs.names)
        self.problems = [
            f"tensor '{name}' is not one that the recipe makes" for name in output.names if name not in made
        ]
        self.rows = [row for row, name in enumerate(plan.jobs.names) if self._fits(row, name)]

    def _fits(self, row: int, name: str) -> bool:
        if name not in self._output.entries:
            self.problems.append(f"tensor '{name}', which the recipe makes, is missing")
            return False
        entry = self._output.entries[name][1]
        dtype, shape = self._jobs.group(row).out_dtype, self._jobs.shapes[row]
        if (entry.dtype, entry.shape) == (dtype, shape):
            return True
        self.problems.append(
            f"tensor '{name}' is {entry.dtype} {list(entry.shape)}, but the recipe makes {dtype} {list(shape)}"
        )
        return False

    def tasks(self, rows: Sequence[int]) -> Iterator[TensorTask]:
        import numpy as np

        for row in rows:
            group = self._jobs.group(row)
            memory = np.empty(self._jobs.counts[row] * group.out_dtype.itemsize, np.uint8)
            yield TensorTask(group, row, (MemorySink(memory.ctypes.data, memory),))

    def compare(self, task: TensorTask, _: object) -> None:
        name, (sink,) = self._jobs.names[task.row], task.sinks
        assert isinstance(sink, MemorySink)
        view, made = self._output.view(name), memoryview(sink.owner)
        size, at, differing = view.dtype.itemsize, 0, 0
        for piece in view.chunks(PIECE):
            differing += count_differing(piece, made[at : at + len(piece)], size)
            at += len(piece)
        if differing:
            self.problems.append(
                f"tensor '{name}': {differing:,} of {view.count:,} elements are not what the reference computes"
                + self._reason(task)
            )

    def _reason(self, task: TensorTask) -> str:
        if self._version != __version__:
            return f" (merged by warpmerge {self._version}, compared by {__version__})"
        if task.method is not None and task.method.memory is not None:
            return (
                f" (the method {task.method.name} computes in torch: with another version, device or number of threads "
                "its bits may be others)"
            )
        return ""
