"""Requests as the kernels know them: reductions as primitives, and masks by rank as expressions."""

from __future__ import annotations

from typing import Any

from ...expr.patterns import KeptMagnitudes
from ...requests import ElectAndSum, RankMask, Reduce
from ...tasks import TensorTask
from ..primitives import primitive, result


def lowered(task: TensorTask, request: Any) -> Any:
    """The request, or what kernels know in its place; `lifted` takes the answer back."""
    if isinstance(request, Reduce):
        return primitive(task, request, _accelerates)
    if isinstance(request, ElectAndSum) and any(isinstance(mask, RankMask) for mask in request.keep):
        return request.as_map(len(task.inputs))
    return request


def lifted(task: TensorTask, request: Any, answer: Any) -> Any:
    """The answer to a request from that to what it was lowered to."""
    return result(task, request, answer) if isinstance(request, Reduce) else answer


def _accelerates(pattern: KeptMagnitudes) -> bool:
    """Kernels know no masks by rank."""
    return not any(isinstance(mask, RankMask) for mask in pattern.keep)
