"""What kernels are measured on: random models, and the task of one tensor over them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from warpmerge.dtypes import BY_NAME
from warpmerge.methods import TensorInfo
from warpmerge.models.views import Memory
from warpmerge.tasks import MemorySink, TensorTask

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
WEIGHTS = (0.51, 0.33, 0.237, 0.118, 0.291, 0.173, 0.419, 0.067)


def random_model(count: int, index: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> torch.Tensor:
    """The base (0), like a layer's weights, or a fine-tune of it (1, 2, ...)."""
    generator = torch.Generator(device).manual_seed(0)
    values = torch.randn(count, generator=generator, device=device).mul_(0.02)
    if index:
        generator.manual_seed(index)
        values += torch.randn(count, generator=generator, device=device).mul_(2e-3)
    return values.to(dtype)


def dtype_of(tensor: torch.Tensor) -> Any:
    """The dtype of a tensor by warpmerge's own name."""
    return BY_NAME[str(tensor.dtype).removeprefix("torch.")]


def make_task(inputs: Sequence[torch.Tensor], base: torch.Tensor | None, out: torch.Tensor) -> TensorTask:
    """One tensor of each model, in the memory of the host."""
    return TensorTask.alone(
        info=TensorInfo("layer.weight", out.numel(), len(inputs)),
        method=None,
        values={"nonfinite": "error"},
        inputs=[_view(tensor) for tensor in inputs],
        base=None if base is None else _view(base),
        out_dtype=dtype_of(out),
        sinks=[MemorySink(out.data_ptr(), out)],
        labels=[],
    )


def carry_out(backend: Any, task: TensorTask, request: Any) -> Any:
    """The outcome of one request by a backend that computes on the CPU."""
    return backend.launch([(task, request)]).wait()[0]


def _view(tensor: torch.Tensor) -> Memory:
    return Memory(dtype_of(tensor), tuple(tensor.shape), tensor.data_ptr(), tensor)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.view(torch.uint8), b.view(torch.uint8))
