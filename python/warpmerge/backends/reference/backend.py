"""The reference: every request in plain PyTorch, written to be read. It defines what the compiled kernels compute.

What is computed of each element is an expression, which expressions.py evaluates one operation at a time.

Whole tensors are processed at once, so memory is bounded by a few copies of the largest one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ...models.views import View
from ...requests import (
    Copy,
    ElectAndSum,
    Gram,
    KthLargest,
    Map,
    Reduce,
    Selection,
    TensorFunction,
    WeightedSum,
)
from ...tasks import DeviceSink, Outcome, TensorTask, Work
from ..primitives import columns_of
from ..protocol import Backend
from .expressions import all_same, evaluate
from .measures import (
    finite,
    gram,
    magnitude_keys,
    philox_lanes,
    reduced,
    row_ranks,
    select,
)
from .output import add_delta, digest, round_to

__all__ = [
    "TorchBackend",
    "add_delta",
    "create",
    "digest",
    "evaluate",
    "gram",
    "magnitude_keys",
    "philox_lanes",
    "reduced",
    "round_to",
    "row_ranks",
    "select",
]


class TorchBackend(Backend):
    name = "torch"

    def __init__(self, threads: int | None = None) -> None:
        """`threads`: of functions of whole tensors, whose bits may depend on their number."""
        self._threads = threads

    def launch(self, work: list[Work]) -> _Done:
        return _Done([_carry_out(task, request, self._threads) for task, request in work])

    def cancel(self) -> None: ...

    def close(self) -> None: ...


class _Done:
    def __init__(self, outcomes: list[Outcome]) -> None:
        self._outcomes = outcomes

    def wait(self) -> list[Outcome]:
        return self._outcomes


def _carry_out(task: TensorTask, request: Any, threads: int | None) -> Outcome:
    if isinstance(request, Copy):
        return Outcome(_write(task, np.frombuffer(task.inputs[request.index].read(), np.uint8)))
    if isinstance(request, TensorFunction):
        from ..tensor_function import carry_out

        return carry_out(task, request, threads=threads)
    if isinstance(request, WeightedSum | ElectAndSum):
        request = request.as_map(len(task.inputs))
    operands = _Operands(task, request.on_deltas)
    if isinstance(request, Map):
        return _map(task, request, operands)
    return Outcome.of(_measured(task, request, operands), [*operands.nonfinite, 0])


class _Operands:
    """Inputs (deltas if `on_deltas`) and base, flat and in the compute type.

    nonfinite: of each input and the base, how many elements are not finite. sound: the elements of which all are.
    """

    def __init__(self, task: TensorTask, on_deltas: bool) -> None:
        compute = torch.float64 if task.fp64 else torch.float32
        x = [_load(b).to(compute) for b in task.inputs]
        base = _load(task.base).to(compute) if on_deltas and task.base else None
        found = [torch.isfinite(t) for t in [*x, *([base] if base is not None else [])]]
        self.sound = torch.stack(found).all(0)
        self.nonfinite = [int((~each).sum()) for each in found] + [0] * (len(x) + 1 - len(found))
        if base is not None:
            x = [t - base for t in x]
        if task.values["nonfinite"] == "base":
            x = [finite(d) for d in x]
        self.x, self.base = x, base


def _measured(task: TensorTask, request: Any, operands: _Operands) -> Any:
    x = operands.x
    formula = getattr(request, "of", None)
    if formula is not None:
        x = [finite(v) for v in evaluate(formula.program(len(x), task.fp64), x, operands.base)]
    if isinstance(request, Reduce):
        x = x if request.kind == "histogram" else [finite(v) for v in x]
        return reduced(x, request, columns_of(task, formula))
    if isinstance(request, KthLargest):
        return [
            select(d, k, request.keep_all_ties) if k else Selection() for d, k in zip(x, request.counts, strict=True)
        ]
    assert isinstance(request, Gram)
    return gram(x)


def _map(task: TensorTask, request: Map, operands: _Operands) -> Outcome:
    x, base = operands.x, operands.base
    overflowed, digests = 0, []
    for m, value in enumerate(evaluate(request.formula.program(len(x), task.fp64), x, base)):
        result = round_to(finish(value, x, base, request.agree), task.out_dtype)
        whole = torch.isfinite(result)
        overflowed += int((operands.sound & ~whole).sum())
        if base is not None and task.values["nonfinite"] == "base":
            result = torch.where(whole, result, round_to(base, task.out_dtype))
        digests.append(_write(task, result, m))
    return Outcome.of(digests[0], [*operands.nonfinite, overflowed])


# --- operands and results -------------------------------------------------------------------------------------------


def _load(view: View) -> torch.Tensor:
    data, dtype = torch.from_numpy(np.frombuffer(view.read(), np.uint8).copy()), getattr(torch, view.dtype.name)
    return data.view(dtype) if data.numel() else data.to(dtype)


def _write(task: TensorTask, data: Any, output: int = 0) -> int:
    if isinstance(data, torch.Tensor):
        data = data.contiguous().view(torch.uint8).numpy() if data.numel() else np.empty(0, np.uint8)
    sink = task.sinks[output]
    assert not isinstance(sink, DeviceSink)
    sink.write(memoryview(data).cast("B"))
    return digest(data)


# --- combine --------------------------------------------------------------------------------------------------------


def finish(value: torch.Tensor, x: list[torch.Tensor], base: torch.Tensor | None, agree: int) -> torch.Tensor:
    if base is not None:
        return add_delta(base, value)
    if agree:
        return torch.where(all_same(x[:agree]), x[0], value)
    return value


def create(threads: int | None = None, tile: int | None = None, device: str = "cpu") -> TorchBackend:
    return TorchBackend(threads)
