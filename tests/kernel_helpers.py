"""Driving the backends and the native module directly: small models, tasks, bit comparisons."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from native_pool import buffer, operands, output, pool, work
from warpmerge import _core
from warpmerge.backends.cpu.backend import CpuBackend
from warpmerge.backends.reference.backend import TorchBackend
from warpmerge.engine import loop as engine
from warpmerge.engine.values import resolve_values
from warpmerge.methods import TensorInfo, find
from warpmerge.tasks import MemorySink, TensorTask

__all__ = ["buffer", "operands", "output", "pool", "work"]  # and what is defined here

ISAS = _core.isas()
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}
# The base's dtype, then the models' in turn. The last one is computed in float64 because of a single model.
MIXED = {
    "mixed": (torch.bfloat16, torch.float32, torch.float16, torch.bfloat16),
    "mixed64": (torch.float32, torch.bfloat16, torch.float64, torch.float16),
}
ALL_DTYPES = [*DTYPES, *MIXED]
WEIGHTS = [0.51, 0.33, 0.237, 0.118, 0.291, 0.173, 0.419, 0.067, 0.382]  # no small sums of them cancel
INTEGERS = {2: np.int16, 4: np.int32, 8: np.int64}


def weights(models: int) -> list[float]:
    return WEIGHTS[:models]


def signed(models: int) -> list[float]:
    return [w if k % 2 == 0 else -w for k, w in enumerate(weights(models))]


def densities(models: int) -> list[float]:
    """Every kind at once: partial, none, all."""
    return [0.5, 0.2, 1.0, 0.8, 0.0, 0.57, 0.3, 0.95, 0.1][:models]


def family(
    dtype: str, models: int, shape: int | tuple[int, ...], *, seed: int = 0, sigma: float = 2e-3
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """A base like a layer's weights, and fine-tunes of it that leave some elements as they were."""
    generator = torch.Generator().manual_seed(seed)
    shape = (shape,) if isinstance(shape, int) else shape
    kinds = MIXED.get(dtype) or (DTYPES[dtype],) * 2
    base = (torch.randn(shape, generator=generator, dtype=torch.float64) * 0.02).to(kinds[0])
    tuned = []
    for k in range(models):
        moved = torch.randn(shape, generator=generator, dtype=torch.float64) * sigma
        moved = moved * (torch.rand(shape, generator=generator) > 0.1)
        tuned.append((base.double() + moved).to(kinds[1 + k % (len(kinds) - 1)]))
    return base, tuned


def unaligned(tensor: torch.Tensor) -> torch.Tensor:
    """The same values one element behind an aligned address, as tensors lie in a mapped file."""
    room = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)
    room[1:] = tensor.reshape(-1)
    return room[1:].view(tensor.shape)


def bits(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach().contiguous().reshape(-1)
    if tensor.numel() == 0:
        return np.empty(0, np.int16)
    return tensor.view(torch.uint8).numpy().view(INTEGERS[tensor.element_size()])


def assert_same_bits(got: torch.Tensor, wanted: torch.Tensor, what: Any = "") -> None:
    assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape), what
    differ = np.flatnonzero(bits(got) != bits(wanted))
    if differ.size:
        at = int(differ[0])
        values = got.reshape(-1)[at].item(), wanted.reshape(-1)[at].item()
        raise AssertionError(
            f"{what}: {differ.size} of {got.numel()} elements differ; [{at}] is {values[0]!r}, not {values[1]!r}"
        )


# --- tasks on a backend ---------------------------------------------------------------------------------------------


@functools.cache
def cpu(isa: str = "", threads: int = 1, tile: int | None = None) -> CpuBackend:
    return CpuBackend(threads, tile, isa or ISAS[0])


# With two threads tiles are finished out of order; tiles of 512 elements are the smallest there are.
CONFIGURATIONS = [(isa, threads, tile) for isa in ISAS for threads in (1, 2) for tile in (512, None)]


@functools.cache
def reference() -> TorchBackend:
    return TorchBackend()


def native_file(file: Any) -> Any:
    """An open file of Python as the native module has it: with a descriptor of its own."""
    return _core.File(os.dup(file.fileno()))


def opened(path: Any) -> Any:
    return _core.File(os.open(path, os.O_RDONLY))


def values_of(method: str, models: int, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """What a recipe would come to: defaults filled in, one value per model where there is one."""
    return resolve_values(find(method), models, parameters, on_deltas=True)


def task(
    method: str,
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor | None = None,
    *,
    out_dtype: torch.dtype | None = None,
    name: str = "layer.weight",
    seed: int = 7,
    **parameters: Any,
) -> tuple[TensorTask, torch.Tensor]:
    """A task and the tensor that it writes, filled with a value that no merge gives."""
    first = base if base is not None else tensors[0]
    result = torch.full(first.shape, 123.0, dtype=out_dtype or first.dtype)
    everything = [*tensors, *([base] if base is not None else [])]
    fp64 = any(t.dtype == torch.float64 for t in everything)
    made = TensorTask.alone(
        info=TensorInfo(name, first.numel(), len(tensors), seed, tuple(first.shape), fp64=fp64),
        method=find(method),
        values=values_of(method, len(tensors), parameters),
        inputs=[buffer(t) for t in tensors],
        base=None if base is None else buffer(base),
        out_dtype=buffer(result).dtype,
        sinks=[MemorySink(result.data_ptr(), result)],
        labels=[f"model {k}" for k in range(len(tensors))] + ["base"],
        fp64=fp64,
    )
    return made, result


def changed(made: TensorTask, **fields: Any) -> TensorTask:
    """The task with other fields, those that TensorTask.alone takes."""
    names = ("info", "method", "values", "inputs", "base", "out_dtype", "sinks", "labels", "fp64")
    return TensorTask.alone(**{name: getattr(made, name) for name in names} | fields)


def run(backend: Any, *tasks: tuple[TensorTask, torch.Tensor]) -> list[torch.Tensor]:
    engine.run([t for t, _ in tasks], backend)
    return [result for _, result in tasks]


def merge(backend: Any, method: str, *arguments: Any, **parameters: Any) -> torch.Tensor:
    return run(backend, task(method, *arguments, **parameters))[0]
