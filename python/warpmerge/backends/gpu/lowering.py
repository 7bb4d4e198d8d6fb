"""Requests as the kernels know them: reductions as primitives, and patterns without an accelerator as expressions."""

from __future__ import annotations

from typing import Any

from ...expr.patterns import KeptMagnitudes
from ...requests import ElectAndSum, RankMask, Reduce, WeightedSum
from ...tasks import TensorTask
from ..primitives import primitive, result

Pattern = WeightedSum | ElectAndSum | KeptMagnitudes
ACCELERATORS = {WeightedSum: "weighted_sum", ElectAndSum: "elect_and_sum", KeptMagnitudes: "kept_sums"}


class Lowering:
    """To what one set of kernels knows. The kernels are asked once for their accelerators."""

    def __init__(self, kernels: Any) -> None:
        self._accelerated = {pattern for pattern, kernel in ACCELERATORS.items() if hasattr(kernels, kernel)}

    def lowered(self, task: TensorTask, request: Any) -> Any:
        """The request, or what kernels know in its place; `answered` takes the answer back."""
        if isinstance(request, Reduce):
            return primitive(task, request, self._accelerates)
        if isinstance(request, WeightedSum | ElectAndSum) and not self._accelerates(request):
            return request.as_map(len(task.inputs))
        return request

    def _accelerates(self, pattern: Pattern) -> bool:
        """Kernels know no masks by rank."""
        masks = () if isinstance(pattern, WeightedSum) else pattern.keep
        return type(pattern) in self._accelerated and not any(isinstance(mask, RankMask) for mask in masks)


def answered(task: TensorTask, request: Any, answer: Any) -> Any:
    """The answer to a request from that to what it was lowered to."""
    return result(task, request, answer) if isinstance(request, Reduce) else answer
