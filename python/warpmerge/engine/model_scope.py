"""Statistics of whole models: a method's steps taken once, over all tensors laid end to end.

Each measurement is one more read of the inputs. Sums of tensors are added up exactly (math.fsum) and counts as
integers, so neither the order of the tensors nor the backend shows in the result.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ..errors import MergeError, RecipeError
from ..methods import TensorInfo
from ..requests import Copy, ElectAndSum, Gram, GramResult, KthLargest, Reduce
from ..tasks import TensorTask
from . import loop as engine

HISTOGRAMS = 24  # of a batch: half a megabyte each


def wanted(values: Mapping[str, Any]) -> bool:
    """Whether a method with these values decides once for the whole model."""
    return values.get("scope") == "model"


class ModelScope:
    """A model while it is measured: the tasks of all its tensors that are merged, which need no sinks."""

    def __init__(
        self, tasks: Iterable[TensorTask], backend: Any, progress: engine.Progress = lambda done: None
    ) -> None:
        self.backend, self.progress = backend, progress
        self.tasks = found = list(tasks)
        _check_values(found)
        # Thresholds are bit patterns of one compute type.
        self.fp64 = any(t.fp64 for t in found)
        for task in found:
            task.fp64 = self.fp64
        ends = list(itertools.accumulate((t.info.count for t in found), initial=0))
        self.first = {t.info.name: first for t, first in zip(found, ends, strict=False)}
        self.count = ends[-1]

    def solve(self, method: Any) -> Callable[[str], Any]:
        """Takes the method's steps; returns the combination for a tensor by its name."""
        if not self.count:
            return lambda name: Copy()  # of nothing: there is nothing to measure either
        some = self.tasks[0]
        info = TensorInfo("", self.count, some.info.models, some.info.seed, fp64=self.fp64)
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
        raise MergeError(f"{type(request).__name__} has no meaning for a whole model; that is an error in the method.")

    def each(self, request: Any, tasks: Sequence[TensorTask] | None = None, report: bool = True) -> Iterable[Any]:
        """The request's result for each tensor, in order; those without elements are left out."""
        of = [t for t in (self.tasks if tasks is None else tasks) if t.info.count]
        work = ((t, placed(request, self.first[t.info.name])) for t in of)
        progress = self.progress if report else engine.silent
        most = HISTOGRAMS if isinstance(request, Reduce) and request.kind == "histogram" else None
        return engine.measure(work, self.backend, progress, most)


def solve_in_memory(tasks: Sequence[TensorTask], backend: Any) -> None:
    """Gives the tasks of a model their combinations if the method decides once for all of them."""
    scoped = [t for t in tasks if t.method is not None and wanted(t.values)]
    if scoped:
        combination = ModelScope(scoped, backend).solve(scoped[0].method)
        for task in scoped:
            task.solved = combination(task.info.name)


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


def _check_values(tasks: Sequence[TensorTask]) -> None:
    for task in tasks[1:]:
        for name, value in task.values.items():
            if value != tasks[0].values[name]:
                raise RecipeError(
                    f"scope: model decides once for all tensors, but '{name}' is {tasks[0].values[name]} for "
                    f"'{tasks[0].info.name}' and {value} for '{task.info.name}'; give it one value, without gradients "
                    "and filters."
                )


def _total_gram(parts: Sequence[GramResult]) -> GramResult:
    models = len(parts[0].norms_sq)
    distances = [tuple(math.fsum(p.distances_sq[i][k] for p in parts) for k in range(models)) for i in range(models)]
    return GramResult(tuple(math.fsum(p.norms_sq[k] for p in parts) for k in range(models)), tuple(distances))
