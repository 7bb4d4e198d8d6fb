"""How far apart two results are."""

from __future__ import annotations

from collections.abc import Sequence

import torch

BITS = {torch.float64: 53, torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}


def ulp(size: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(n,) float64: the distance of neighbours in `dtype` at magnitudes of this size."""
    least = torch.finfo(dtype).tiny
    _, exponent = torch.frexp(size.double().abs().clamp_min(least))
    return torch.ldexp(torch.ones_like(size, dtype=torch.float64), exponent - BITS[dtype])


def operand_ulp(inputs: Sequence[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """An ulp of the largest operand, for each element: what a result can be expected to be accurate to."""
    return ulp(torch.stack([t.double().abs() for t in inputs]).amax(dim=0), dtype)


def ulps(a: torch.Tensor, b: torch.Tensor, inputs: Sequence[torch.Tensor], dtype: torch.dtype) -> float:
    """The largest difference in ulps of the largest operand; infinite where just one is NaN."""
    a, b = a.double(), b.double()
    difference = (a - b).abs() / operand_ulp(inputs, dtype)
    difference = torch.where((a == b) | (a.isnan() & b.isnan()), torch.zeros_like(difference), difference)
    return float(difference.nan_to_num(nan=float("inf")).amax()) if difference.numel() else 0.0
