"""The methods as they are written in plain PyTorch, whole tensors at a time, on any device.

They are what a merge costs without this package: each operation reads and writes whole float32 tensors. `ties` takes
the rule that finds the larger elements, since that is where the time goes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence

import torch

Tensors = Sequence[torch.Tensor]
Mask = Callable[[torch.Tensor, int], torch.Tensor]


# --- the `count` elements of largest magnitude; those that tie with the last one are kept too, but for argsort ------


def by_sort(delta: torch.Tensor, count: int) -> torch.Tensor:
    magnitude = delta.abs()
    return magnitude >= torch.sort(magnitude).values[-count]


def by_topk(delta: torch.Tensor, count: int) -> torch.Tensor:
    magnitude = delta.abs()
    return magnitude >= torch.topk(magnitude, count, sorted=False).values.min()


def by_argsort(delta: torch.Tensor, count: int) -> torch.Tensor:
    """As common merge tools do it: the indices in order of magnitude, then a mask of the first ones."""
    order = torch.argsort(delta.abs(), descending=True)
    mask = torch.zeros_like(delta, dtype=torch.bool)
    mask[order[:count]] = True
    return mask


# torch.kthvalue works with a single thread block per row: on a GPU it is many times slower than sorting.
SEARCHES: dict[str, Mask] = {"sort": by_sort, "topk": by_topk}


# --- the methods ----------------------------------------------------------------------------------------------------


def linear(models: Tensors, weights: Sequence[float]) -> torch.Tensor:
    total = _sum(w * m.float() for w, m in zip(weights, models, strict=True))
    return (total / sum(weights)).to(models[0].dtype)


def task_arithmetic(models: Tensors, base: torch.Tensor, weights: Sequence[float]) -> torch.Tensor:
    origin = base.float()
    return _on_base(origin, _sum(w * (m.float() - origin) for w, m in zip(weights, models, strict=True)), base)


def ties(models: Tensors, base: torch.Tensor, weights: Sequence[float], density: float, keep: Mask) -> torch.Tensor:
    origin = base.float()
    kept = []
    for model, weight in zip(models, weights, strict=True):
        delta = model.float() - origin
        kept.append(torch.where(keep(delta, int(density * delta.numel())), delta, 0.0) * weight)
    return _on_base(origin, _elected(kept, weights), base)


def dare(models: Tensors, base: torch.Tensor, weights: Sequence[float], density: float, *, elect: bool) -> torch.Tensor:
    origin = base.float()
    kept = []
    for model, weight in zip(models, weights, strict=True):
        delta = model.float() - origin
        dropped = delta * torch.empty_like(delta).bernoulli_(density)
        kept.append(dropped * (weight * (delta.abs().sum() / dropped.abs().sum())))
    return _on_base(origin, _elected(kept, None) if elect else _sum(kept), base)


def slerp(models: Tensors, t: float) -> torch.Tensor:
    a, b = (m.float() for m in models)
    cosine = (a / a.norm() * (b / b.norm())).sum().clamp(-1, 1)
    angle = torch.arccos(cosine)
    spherical = (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)
    return torch.where(cosine.abs() > 0.9995, (1 - t) * a + t * b, spherical).to(models[0].dtype)


def _sum(terms: Iterable[torch.Tensor]) -> torch.Tensor:
    """Without the addition to 0 that `sum` begins with."""
    return functools.reduce(torch.add, terms)


def _elected(terms: list[torch.Tensor], weights: Sequence[float] | None) -> torch.Tensor:
    """The sum of the terms whose sign is that of the sum of all, over the sum of their weights if there are any."""
    sign = torch.sign(_sum(terms))
    sign = torch.where(sign == 0, 1.0, sign)
    agrees = [torch.sign(term) == sign for term in terms]
    total = _sum(torch.where(mask, term, 0.0) for mask, term in zip(agrees, terms, strict=True))
    if weights is None:
        return total
    share = _sum(mask * weight for mask, weight in zip(agrees, weights, strict=True))
    return total / torch.where(share == 0, 1.0, share)


def _on_base(origin: torch.Tensor, delta: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    return (origin + delta).to(base.dtype)


def difference(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest difference, relative to the largest value."""
    scale = float(wanted.float().abs().max())
    worst = float((got.float() - wanted.float()).abs().max()) / scale
    return worst if math.isfinite(worst) else math.inf
