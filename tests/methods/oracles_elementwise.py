"""What the methods that work on each element by itself must compute: sorts, loops over models, extended precision.

Only steps of the rules for numbers are taken over: deltas and the bounds that magnitudes are compared with are rounded
once to the compute type.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import oracles
import torch
from oracles import TURNING, Expected, Real, compute_type, deltas, exact, kept_count, per_model

Tensors = Sequence[torch.Tensor]


def _real_deltas(x: Tensors, base: torch.Tensor) -> np.ndarray:
    return np.stack([d.astype(Real) for d in deltas(x, base)])


def _inexact(kind: type, *values: np.ndarray) -> np.ndarray:
    """Where one of them is not a number of the compute type."""
    return np.any([v.astype(kind) != v for v in values], axis=0)


def _added(x: Tensors, base: torch.Tensor, delta: np.ndarray, *terms: np.ndarray) -> Expected:
    return oracles._added(list(x), base, list(terms), delta, 1)


# --- order statistics -----------------------------------------------------------------------------------------------


def _sorted(x: Tensors) -> np.ndarray:
    return np.sort(np.stack([exact(t) for t in x]), axis=0)


def _mean(x: Tensors, chosen: np.ndarray) -> Expected:
    return Expected(chosen.mean(axis=0), np.max([np.abs(exact(t)) for t in x], axis=0))


def median(x: Tensors, *, even: str = "mean") -> Expected:
    values = _sorted(x)
    if even == "lower":
        return _mean(x, values[[(len(x) - 1) // 2]])
    expected = _mean(x, values)
    expected.value = np.median(values, axis=0)
    return expected


def trimmed_mean(x: Tensors, *, beta: float) -> Expected:
    values = list(_sorted(x))
    for _ in range(int(beta * len(x))):
        values = values[1:-1]
    return _mean(x, np.stack(values))


# --- masks ----------------------------------------------------------------------------------------------------------


def nearswap(x: Tensors, base: torch.Tensor, *, t: float) -> Expected:
    """As the share q of the model that it was first described by."""
    (d,) = _real_deltas(x, base)
    gap = np.where(d == 0, 1, np.abs(d))
    share = np.clip(Real(t) / gap, 0, 1)
    return _added(x, base, share * d, d)


def magmax(x: Tensors, base: torch.Tensor, *, lambda_: float = 0.5, ties: str = "last_model") -> Expected:
    d = _real_deltas(x, base)
    if ties == "last_model":
        d = d[::-1]
    winner = np.argmax(np.abs(d), axis=0)  # the first of equal ones
    chosen = np.take_along_axis(d, winner[None], axis=0)[0]
    return _added(x, base, Real(lambda_) * chosen, *d)


def _changed(x: Tensors, base: torch.Tensor, epsilon: float) -> np.ndarray:
    return np.abs(np.stack(deltas(x, base))) > compute_type([*x, base])(epsilon)


def ram(x: Tensors, base: torch.Tensor, *, epsilon: float = 1e-5) -> Expected:
    d = np.ma.array(_real_deltas(x, base), mask=~_changed(x, base, epsilon))
    return _added(x, base, d.mean(axis=0).filled(0), *d.data)


def ramplus_tl(
    x: Tensors,
    base: torch.Tensor,
    *,
    r: float = 0.1,
    alpha: float = 0.2,
    epsilon: float = 1e-5,
    overlap: str = "unique",
) -> Expected:
    changed = _changed(x, base, epsilon)
    alone = changed.sum(axis=0) == 1
    expected = ram(x, base, epsilon=epsilon)
    for k, d in enumerate(_real_deltas(x, base)):
        unique, shared = int((changed[k] & alone).sum()), int((changed[k] & ~alone).sum())
        if unique:
            ratio = Real(shared) / (unique if overlap == "unique" else unique + shared)
            at = changed[k] & alone
            expected.value[at] = (exact(base) + (1 + Real(r) * np.minimum(ratio, Real(alpha))) * d)[at]
    return expected


def consensus_ta(
    x: Tensors,
    base: torch.Tensor,
    *,
    weight: Any = 1.0,
    mask_lambda: Any = 0.4,
    k: int = 2,
    lambda_: float = 1.0,
) -> Expected:
    kind = compute_type([*x, base])
    v = np.stack([w * d for w, d in zip(per_model(weight, len(x)), _real_deltas(x, base), strict=True)])
    tau = v.sum(axis=0)
    wanted, unsure = np.zeros(tau.size, int), np.zeros(tau.size, bool)
    rounding = _inexact(kind, *v, *np.cumsum(v, axis=0))
    for mine, bound in zip(v, per_model(mask_lambda, len(x)), strict=True):
        others = kind(bound) * np.abs(tau - mine).astype(kind)
        wanted += np.abs(mine) > others
        operands = np.abs(mine) + bound * np.abs(v).sum(axis=0)
        near = np.abs(np.abs(mine) - others) <= TURNING * np.finfo(kind).eps * operands
        unsure |= near & (operands > 0) & (rounding | _inexact(kind, tau - mine))
    expected = _added(x, base, np.where(wanted >= k, Real(lambda_) * tau, 0), *v, lambda_ * tau)
    expected.unsure = unsure
    return expected


def emr(x: Tensors, base: torch.Tensor, *, task: int | None = None) -> Expected:
    kind, d = compute_type([*x, base]), _real_deltas(x, base)
    tally = d.sum(axis=0)
    sign = np.where(tally > 0, 1, -1)
    agrees = np.sign(d) == sign
    tau = sign * np.where(agrees, np.abs(d), 0).max(axis=0)
    if task is not None:
        mine = np.where(agrees[task - 1], tau, 0)
        below = np.abs(mine).sum()
        tau = mine * (np.abs(d[task - 1]).sum() / below if below > 0 else 1)
    expected = _added(x, base, tau, *d)
    near = np.abs(tally) <= TURNING * np.finfo(kind).eps * np.abs(d).sum(axis=0)
    expected.unsure = near & _inexact(kind, *np.cumsum(d, axis=0)) & ((d != 0).sum(axis=0) > 1)
    return expected


# --- sparse task vectors ----------------------------------------------------------------------------------------------


def _middle(d: np.ndarray, density: float, gamma: float) -> np.ndarray:
    """Which are kept: sorted from the largest, of equal ones the first before the others."""
    count = d.size
    middle = min(kept_count(density, count), count)
    bottom = max(0, count - middle - int(gamma * count))
    order = np.lexsort((np.arange(count), -np.abs(d)))
    mask = np.zeros(count, bool)
    mask[order[count - bottom - middle : count - bottom]] = True
    return mask


def _crumbs(x: Tensors, base: torch.Tensor, density: list, gamma: Any) -> list[np.ndarray]:
    gamma = per_model(gamma, len(x))
    return [_middle(d, r, g) for d, r, g in zip(deltas(x, base), density, gamma, strict=True)]


def breadcrumbs(x: Tensors, base: torch.Tensor, *, density: Any = 1.0, gamma: Any = 0.01, **p: Any) -> Expected:
    p = {"rescale": False, "normalize": False, "divisor": None, "lambda_": 1.0, **p}
    density = per_model(density, len(x))
    keep = _crumbs(x, base, density, gamma)
    scale = oracles._rescaling(deltas(x, base), keep, density, "l1" if p["rescale"] is True else p["rescale"])
    divisor = p["divisor"] or ("weights" if p["normalize"] else "none")
    return oracles._merge(list(x), base, keep, scale, p["weight"], divisor, p["lambda_"])


def breadcrumbs_ties(x: Tensors, base: torch.Tensor, *, density: Any = 1.0, gamma: Any = 0.01, **p: Any) -> Expected:
    density = per_model(density, len(x))
    keep = _crumbs(x, base, density, gamma)
    return oracles._elected(list(x), base, keep, density, {"rescale": False, "normalize": False, **p})


def sce(
    x: Tensors,
    base: torch.Tensor,
    *,
    select_topk: float = 1.0,
    sce_mask_merge: bool = True,
    uniform_below: float = 0.0,
    **_: Any,
) -> Expected:
    kind, d, models = compute_type([*x, base]), _real_deltas(x, base), len(x)
    selected, unsure = np.ones(base.numel(), bool), np.zeros(base.numel(), bool)
    if select_topk < 1:
        # The variance as a sum over pairs: exact on grids, as sums of squares from the mean are not.
        variance = sum((d[i] - d[k]) ** 2 for i in range(models) for k in range(i)) + np.zeros(base.numel(), Real)
        differ = int((variance != 0).sum())
        wanted = kept_count(select_topk, differ) if differ else 0
        order = np.lexsort((np.arange(variance.size), -variance))
        selected = np.zeros(variance.size, bool)
        selected[order[:wanted]] = True
        if wanted:
            bound = variance[order[wanted - 1]]
            near = np.abs(variance - bound) <= TURNING * np.finfo(kind).eps * bound
            if not selected[near].all():
                unsure = near & _inexact(kind, models * variance)
    masked = np.where(selected, d, 0)
    energies = [(m * m).mean() if m.size else Real(0) for m in masked]
    whole = sum(energies)
    share = [e / whole for e in energies] if whole > uniform_below else [Real(1) / models] * models
    keep = [np.where(selected, True, not sce_mask_merge)] * models
    expected = _weighed(x, base, keep, share)
    expected.unsure = expected.unsure | unsure
    return expected


def _weighed(x: Tensors, base: torch.Tensor, keep: list[np.ndarray], share: list) -> Expected:
    p = {"weight": share, "elect": "unweighted", "divisor": "weights", "rescale": False}
    return oracles._elected(list(x), base, keep, [1.0] * len(x), p)
