"""How results leave the compute type: added to the base, rounded once, and digested."""

from __future__ import annotations

import numpy as np
import torch

from ...dtypes import DType
from ...random import mix64


def add_delta(base: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    return torch.where(delta == 0, base, base + delta)


def round_to(y: torch.Tensor, dtype: DType) -> torch.Tensor:
    """Rounds once, to nearest even; every NaN becomes the canonical one."""
    wanted = getattr(torch, dtype.name)
    if y.dtype == torch.float64 and wanted in (torch.float16, torch.bfloat16):
        y = _round_to_odd(y)
    result = y.to(wanted)
    return torch.where(torch.isnan(result), torch.full_like(result, float("nan")), result)


def _round_to_odd(y: torch.Tensor) -> torch.Tensor:
    """float64 to float32 such that a further rounding to 16 bits is the correct one: inexact values end in a 1 bit."""
    nearest = y.to(torch.float32)
    bits = nearest.view(torch.int32)
    bits = torch.where(nearest.double().abs() > y.abs(), bits - 1, bits) | 1
    return torch.where((nearest.double() == y) | torch.isnan(y), nearest, bits.view(torch.float32))


def digest(data: np.ndarray) -> int:
    """csrc/ops/digest.h for (m,) uint8."""
    padded = np.zeros(-(-data.size // 8) * 8, np.uint8)
    padded[: data.size] = data
    words = padded.view("<u8")
    x = words + np.arange(1, words.size + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    total = int(x.sum(dtype=np.uint64)) + mix64(~data.size & (2**64 - 1))
    return total & (2**64 - 1)
