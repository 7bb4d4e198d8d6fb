"""Statistics of whole models: a method's steps taken once, over all tensors laid end to end.

Each measurement is one more read of the inputs. Sums of tensors are added up exactly (math.fsum) and counts as
integers, so neither the order of the tensors nor the backend shows in the result.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..errors import MergeError
from ..methods import TensorInfo
from ..plan.jobs import is_whole
from ..requests import Copy, ElectAndSum, Gram, GramResult, KthLargest, Reduce
from ..tasks import Jobs, TensorTask
from . import loop as engine

HISTOGRAMS = 24  # of a batch: half a megabyte each


def decided(
    jobs: Jobs, rows: Iterable[int], backend: Any, progress: engine.Progress = engine.silent
) -> Callable[[str], Any] | None:
    """Measures these rows as one model. Returns a function from a tensor's name to its combination; None unless the
    method decides once for the whole model."""
    if not any(is_whole(group.values) for group in jobs.groups):
        return None
    scope = ModelScope(jobs, rows, backend, progress)
    return scope.solve(scope.method)


class ModelScope:
    """A model while it is measured: the tasks of these rows, without sinks. From here on they have one compute type:
    thresholds are bit patterns."""

    def __init__(
        self, jobs: Jobs, rows: Iterable[int], backend: Any, progress: engine.Progress = engine.silent
    ) -> None:
        self.backend, self.progress = backend, progress
        merged = [group for group in jobs.groups if group.method is not None]
        self.method = merged[0].method
        self.tasks = [TensorTask(jobs.group(row), row) for row in rows if jobs.group(row).method is not None]
        self.fp64 = any(group.fp64 for group in merged)
        for group in merged:
            group.fp64 = self.fp64
        ends = list(itertools.accumulate((jobs.counts[t.row] for t in self.tasks), initial=0))
        self.first = {jobs.names[t.row]: first for t, first in zip(self.tasks, ends, strict=False)}
        self.count = ends[-1]

    def solve(self, method: Any) -> Callable[[str], Any]:
        """Takes the method's steps; returns the combination for a tensor by its name."""
        if not self.count:
            return lambda name: Copy()  # of nothing: there is nothing to measure either
        some = self.tasks[0]
        info = TensorInfo("", self.count, some.group.models, some.group.tensors.seed, fp64=self.fp64)
        steps = method.steps(info, some.values)
        answer = None
        while True:
            try:
                request = steps.send(answer)
            except StopIteration as stop:
                combine = stop.value
                return lambda name: placed(combine, self.first[name])
            answer = self._measure(request)

    def _measure(self, request: Any) -> Any:
        match request:
            case KthLargest():
                from .model_select import select  # needs numpy, which few merges do

                return select(self, request)
            case Reduce(kind="histogram"):
                from .model_select import histograms

                return histograms(self, request)
            case Reduce(over="tensor"):
                total: Any = {"sum": math.fsum, "count": sum, "max": max, "min": min}[request.kind]
                return tuple(total(parts) for parts in zip(*self.each(request), strict=True))
            case Gram():
                return _total_gram(list(self.each(request)))
        raise MergeError(f"{type(request).__name__} cannot be asked of a whole model; that is an error in the method.")

    def each(self, request: Any, tasks: Sequence[TensorTask] | None = None, report: bool = True) -> Iterable[Any]:
        """The request's result for each tensor, in order; those without elements are left out."""
        of = [t for t in (self.tasks if tasks is None else tasks) if t.info.count]
        work = ((t, placed(request, self.first[t.info.name])) for t in of)
        progress = self.progress if report else engine.silent
        most = HISTOGRAMS if isinstance(request, Reduce) and request.kind == "histogram" else None
        return engine.measure(work, self.backend, progress, most)


def placed(request: Any, first: int) -> Any:
    """A request on the model as one on its tensor that begins at element `first`."""
    changed: dict[str, Any] = {}
    if isinstance(request, ElectAndSum):
        changed["keep"] = tuple(rule.offset_by(first) for rule in request.keep)
    for name in ("of", "formula"):
        formula = getattr(request, name, None)
        if formula is not None:
            changed[name] = formula.starting(first)
    return dataclasses.replace(request, **changed) if changed else request


def _total_gram(parts: Sequence[GramResult]) -> GramResult:
    models = len(parts[0].norms_sq)
    distances = [tuple(math.fsum(p.distances_sq[i][k] for p in parts) for k in range(models)) for i in range(models)]
    return GramResult(tuple(math.fsum(p.norms_sq[k] for p in parts) for k in range(models)), tuple(distances))
