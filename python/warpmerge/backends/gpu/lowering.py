"""Requests as the kernels know them: reductions as primitives, and patterns without an accelerator as expressions."""

from __future__ import annotations

from array import array
from typing import Any

from ...expr.patterns import KeptMagnitudes
from ...requests import ElectAndSum, Map, RankMask, Reduce, WeightedSum
from ...tasks import TensorTask
from ..primitives import primitive, result

Pattern = WeightedSum | ElectAndSum | KeptMagnitudes
ACCELERATORS = {WeightedSum: "weighted_sum", ElectAndSum: "elect_and_sum", KeptMagnitudes: "kept_sums"}


class Lowering:
    """To what one set of kernels knows. The kernels are asked once for their accelerators."""

    def __init__(self, kernels: Any) -> None:
        self._accelerated = {pattern for pattern, kernel in ACCELERATORS.items() if hasattr(kernels, kernel)}
        self._latest: tuple[Any, Map | None] = None, None  # weighted sum, by its numbers, and its expression

    def lowered(self, task: TensorTask, request: Any) -> Any:
        """The request, or what kernels know in its place; `lifted` takes the answer back."""
        if isinstance(request, Reduce):
            return primitive(task, request, self._accelerates)
        if isinstance(request, WeightedSum | ElectAndSum) and not self._accelerates(request):
            return self._expression(request, len(task.group.inputs))
        return request

    def _expression(self, request: WeightedSum | ElectAndSum, models: int) -> Map:
        """One object for tensors with the same coefficients in turn: 20 us per tensor instead of 36, all included."""
        if isinstance(request, ElectAndSum):
            return request.as_map(models)
        numbers = array("d", request.coefficients).tobytes()  # tells -0 from 0
        key = models, request.on_deltas, request.agree, numbers
        latest, found = self._latest
        if found is None or latest != key:
            found = request.as_map(models)
            self._latest = key, found
        return found

    def _accelerates(self, pattern: Pattern) -> bool:
        """Kernels know no masks by rank."""
        masks = () if isinstance(pattern, WeightedSum) else pattern.keep
        return type(pattern) in self._accelerated and not any(isinstance(mask, RankMask) for mask in masks)


def lifted(task: TensorTask, request: Any, answer: Any) -> Any:
    """The answer to a request from that to what it was lowered to."""
    return result(task, request, answer) if isinstance(request, Reduce) else answer
