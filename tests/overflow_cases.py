"""Results at the end of what their dtype holds: tensors and requests for all backends, and what must be counted."""

from __future__ import annotations

import math

import numpy as np
import torch
from warpmerge.expr import expression as f
from warpmerge.expr.formula import Formula
from warpmerge.requests import KEEP_ALL, ElectAndSum, Map, RandomMask, TopKMask, WeightedSum

OUT = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
LARGEST_POWER = {torch.float16: 15, torch.bfloat16: 127, torch.float32: 127}
# The base's dtype, the models' and the result's.
KINDS = {
    "fp16": (torch.float16, torch.float16, torch.float16),
    "to fp16": (torch.float32, torch.float32, torch.float16),
    "bf16": (torch.bfloat16, torch.bfloat16, torch.bfloat16),
    "fp32": (torch.float32, torch.float32, torch.float32),
    "fp64 to fp32": (torch.float64, torch.float32, torch.float32),
    "fp64": (torch.float64, torch.float64, torch.float64),
}


def limit(dtype: torch.dtype) -> float:
    """The least number that does not round to a finite one: in the middle between the largest and the next power."""
    if dtype not in LARGEST_POWER:
        return math.inf
    return math.ldexp(2 - torch.finfo(dtype).eps / 2, LARGEST_POWER[dtype])


def at_the_end(source: torch.dtype, out: torch.dtype, count: int) -> torch.Tensor:
    """Numbers of which some lie at the limit of `out` and just beside it, some are not finite, and most are small."""
    numpy_dtype = np.float64 if source == torch.float64 else np.float32
    values = np.random.default_rng(5).normal(size=count).astype(numpy_dtype)
    with np.errstate(over="ignore"):
        end = numpy_dtype(min(limit(out), np.finfo(numpy_dtype).max))
        places = [end, np.nextafter(end, numpy_dtype(0)), end * numpy_dtype(1.5), numpy_dtype(torch.finfo(out).max)]
    for number, value in enumerate([*places, np.nan, np.inf]):
        values[number :: 97 + number] = value
    values[::2] *= -1
    return torch.from_numpy(values)


def too_large(values: torch.Tensor, out: torch.dtype) -> int:
    """How many finite numbers do not round to finite ones."""
    wide = values.double()
    return int((wide.isfinite() & (wide.abs() >= limit(out))).sum())


def large(kind: str, models: int, count: int) -> tuple[torch.Tensor, list[torch.Tensor], torch.dtype]:
    """A base and models whose sums are often too large for the result; some elements are not finite."""
    first, other, out = KINDS[kind]
    generator = torch.Generator().manual_seed(count)
    largest = torch.finfo(other if other != torch.float32 else out).max

    def made(dtype: torch.dtype) -> torch.Tensor:
        share = torch.rand(count, generator=generator, dtype=torch.float64) * 2 - 1
        return (share * largest).to(dtype)

    base, tensors = made(first), [made(other) for _ in range(models)]
    for k, tensor in enumerate([*tensors, base]):
        tensor[k :: 101 + k] = float("nan")
        tensor[10 + k :: 131] = -float("inf")
    for tensor in tensors[1:]:
        tensor[::7] = tensors[0][::7]
    return base, tensors, out


def requests(models: int) -> list[tuple[object, int]]:
    """Requests and their numbers of outputs."""
    weights = (0.9, 0.8, -0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)[:models]
    keep = tuple((KEEP_ALL, RandomMask(5, 40_000), TopKMask(0x100))[k % 3] for k in range(models))
    d = f.delta
    return [
        (WeightedSum(weights, on_deltas=True), 1),
        (WeightedSum(weights, on_deltas=False), 1),
        (WeightedSum((1 / models,) * models + weights, on_deltas=False, agree=True), 2),
        (ElectAndSum(weights, keep), 1),
        (ElectAndSum(weights, keep, vote=weights, divisor=(1.0,) * models, lambda_=1.5, elect=True), 1),
        (Map(Formula((d(0) * 1.5 + d(1), d(0) - d(1))), on_deltas=True), 2),
        (Map(Formula((d(0) * 1.5, f.maximum(d(0), d(1)))), on_deltas=False, agree=2), 2),
    ]
