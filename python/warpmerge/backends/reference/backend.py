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

    def launch(self, work: list[Work]) -> _Done:
        return _Done([_carry_out(task, request) for task, request in work])

    def cancel(self) -> None: ...

    def close(self) -> None: ...


class _Done:
    def __init__(self, outcomes: list[Outcome]) -> None:
        self._outcomes = outcomes

    def wait(self) -> list[Outcome]:
        return self._outcomes


def _carry_out(task: TensorTask, request: Any) -> Outcome:
    if isinstance(request, Copy):
        return Outcome(_write(task, np.frombuffer(task.inputs[request.index].read(), np.uint8)))
    if isinstance(request, TensorFunction):
        from ..tensor_function import carry_out

        return carry_out(task, request)
    x, base, nonfinite = _operands(task, request.on_deltas)
    count = task.info.count
    if isinstance(request, WeightedSum | ElectAndSum):
        request = request.as_map(len(x))
    if isinstance(request, Map):
        program = request.formula.program(len(x), task.fp64)
        values = evaluate(program, x, base)
        values = [finish(v, x, base, request.agree) for v in values]
        digests = [_write(task, round_to(v, task.out_dtype), m) for m, v in enumerate(values)]
        return Outcome(digests[0], nonfinite)
    formula = getattr(request, "of", None)
    if formula is not None:
        x = evaluate(formula.program(len(x), task.fp64), x, base)
        x = [finite(v) for v in x]
    if isinstance(request, Reduce):
        x = x if request.kind == "histogram" else [finite(v) for v in x]
        return Outcome(reduced(x, request, columns_of(task, formula)), nonfinite)
    if isinstance(request, KthLargest):
        chosen = [
            select(d, k, request.keep_all_ties) if k else Selection() for d, k in zip(x, request.counts, strict=True)
        ]
        return Outcome(chosen, nonfinite)
    assert isinstance(request, Gram) and count >= 0
    return Outcome(gram(x), nonfinite)


# --- operands -------------------------------------------------------------------------------------------------------


def _operands(task: TensorTask, on_deltas: bool) -> tuple[list[torch.Tensor], torch.Tensor | None, tuple[int, ...]]:
    """Inputs (deltas if `on_deltas`) and base, flat and in the compute type, and how many elements are not finite."""
    compute = torch.float64 if task.fp64 else torch.float32
    x = [_load(b).to(compute) for b in task.inputs]
    base = _load(task.base).to(compute) if on_deltas and task.base else None
    counts = [int((~torch.isfinite(t)).sum()) for t in [*x, *([base] if base is not None else [])]]
    if base is not None:
        x = [t - base for t in x]
    if task.values["nonfinite"] == "base":
        x = [torch.where(torch.isfinite(d), d, torch.zeros_like(d)) for d in x]
    counts += [0] * (len(x) + 1 - len(counts))
    return x, base, tuple(counts) if any(counts) else ()


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
    return TorchBackend()
