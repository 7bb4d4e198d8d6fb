"""What the methods that look at rows, columns and ranks must compute: sorted, looped over and summed in full precision.

As in oracles.py deltas, whose magnitudes are compared, are rounded as the rules say; so are the probabilities of drops.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import oracles
import oracles_gram
import torch
from bit_oracles import lanes, stream_key
from oracles import Expected, Real, deltas, exact, per_model

# Share by which a value may miss a threshold, and be on either side of it: importances are good to 4e-7, scores to the
# exponential of a few roundings.
NEAR, NEAR_SCORE = 1e-6, 1e-5


def columns_of(tensor: torch.Tensor) -> int:
    return tensor.shape[-1] if tensor.ndim else 1


# --- drops by rank --------------------------------------------------------------------------------------------------


def probabilities(d: np.ndarray, columns: int, density: float, epsilon: float) -> np.ndarray:
    """Of being kept, in 65536ths."""
    least, step = (density - epsilon) * 65536, 2 * epsilon * 65536 / max(1, columns - 1)
    if columns == 1:
        least, step = density * 65536, 0.0
    kind = d.dtype.type
    # The place of each magnitude in its row; of equal ones the first is lower.
    rank = np.argsort(np.argsort(np.abs(d).reshape(-1, columns), axis=1, kind="stable"), axis=1).astype(kind)
    return np.clip(np.rint(kind(least) + rank * kind(step)), 1, 65535).reshape(-1)


def _drawn(x: list, base: torch.Tensor, p: dict[str, Any]) -> tuple[list[np.ndarray], list[Any]]:
    """Masks, and probabilities of each element."""
    keep, chances = [], []
    density, epsilon = (per_model(p[name], len(x)) for name in ("density", "epsilon"))
    for k, d in enumerate(deltas(x, base)):
        if 0 < density[k] < 1:
            cut = probabilities(d, columns_of(base), density[k], epsilon[k])
            keep.append(lanes(stream_key(p["seed"], p["name"], k), d.size) < cut)
            chances.append(cut.astype(Real) / 65536)
        else:
            keep.append(np.full(d.size, density[k] >= 1))
            chances.append(np.ones(d.size, Real))
    return keep, chances


def _dropped(x: list, base: torch.Tensor, p: dict[str, Any]) -> tuple[list[np.ndarray], list[Any]]:
    keep, chances = _drawn(x, base, p)
    if p["rescale"] == "inverse_probability":
        return keep, [1 / q for q in chances]
    return keep, oracles._rescaling(deltas(x, base), keep, [], {True: "l1"}.get(p["rescale"], p["rescale"]))


DELLA = {"density": 1.0, "epsilon": 0.15, "rescale": "l1", "seed": 0, "name": "", "divisor": None, "lambda_": 1.0}


def della(x: list[torch.Tensor], base: torch.Tensor, **p: Any) -> Expected:
    p = {**DELLA, "normalize": True, **p}
    keep, scale = _dropped(x, base, p)
    return oracles.elected(x, base, keep, scale, p)


def della_linear(x: list[torch.Tensor], base: torch.Tensor, **p: Any) -> Expected:
    p = {**DELLA, "normalize": False, **p}
    keep, scale = _dropped(x, base, p)
    divisor = p["divisor"] or ("weights" if p["normalize"] else "none")
    return oracles._merge(x, base, keep, scale, p["weight"], divisor, p["lambda_"])


# --- fusion ---------------------------------------------------------------------------------------------------------


def softmax(row: np.ndarray) -> np.ndarray:
    powers = np.exp(row - row.max())
    return powers / powers.sum()


def arcee_fusion(x: list[torch.Tensor], base: torch.Tensor) -> Expected:
    columns = columns_of(base)
    new, old = (exact(t).reshape(-1, columns) for t in (x[0], base))
    (d,) = deltas(x, base)
    importance = np.abs(d.astype(Real)).reshape(-1, columns)
    for r in range(len(new)):
        p, q = softmax(new[r]) + Real(1e-8), softmax(old[r]) + Real(1e-8)
        importance[r] *= (p * np.log(p / q)).sum()
    ordered = sorted(importance.reshape(-1))
    first, median, third = (ordered[math.floor(q * (len(ordered) - 1))] for q in (0.25, 0.5, 0.75))
    least = median + 1.5 * (third - first)
    importance = importance.reshape(-1)
    value = np.where(importance >= least, exact(x[0]), exact(base))
    unsure = (np.abs(importance - least) <= NEAR * least) & (least > 0)
    return Expected(value, np.maximum(np.abs(exact(x[0])), np.abs(exact(base))), unsure)


# --- parameter competition ------------------------------------------------------------------------------------------


def _stretched(values: np.ndarray) -> np.ndarray:
    """To 0 for the least and 1 for the largest."""
    return (values - values.min()) / (values.max() - values.min())


def pcb(x: list[torch.Tensor], base: torch.Tensor, *, ratio: float = 0.1, lambda_: float = 1.0) -> Expected:
    d = [v.astype(Real) for v in deltas(x, base)]
    count, together = d[0].size, sum(d)
    signed, shares, errors, unsure = [], [], [], np.zeros(count, bool)
    for v in d:
        ordered = np.sort(np.abs(v))
        low, high = ordered[int(1e-4 * count)], ordered[int((1 - 1e-4) * count - 1)]
        size = np.minimum(np.maximum(np.abs(v), low), high)
        signed.append(np.sign(v) * size)
        shares.append(np.zeros(count, Real))
        errors.append(Real(0))
        if high > low:
            score = np.exp(len(x) * _stretched(size) ** 2) * np.tanh(v * together)
            least = np.sort(score)[min(int((1 - ratio) * count), count - 1)]
            if score.max() > least:
                shares[-1] = _stretched(np.maximum(score, least))
                spread = score.max() - least
                unsure |= (np.abs(score - least) <= NEAR_SCORE * abs(least)) & (score != least)
                errors[-1] = 8 * (np.abs(score) + abs(least)) / spread
    by = np.maximum(sum(shares), Real(1e-12))
    tau = sum(s * v for s, v in zip(shares, signed, strict=True)) / by
    # A share may be off by some roundings of its score; this is what that does to their quotient.
    off = sum(e * np.abs(v - tau) * (s > 0) for e, v, s in zip(errors, signed, shares, strict=True)) / by
    merged = Real(lambda_) * tau
    operands = [np.abs(exact(base)), np.abs(merged), *(np.abs(exact(t)) for t in x), abs(lambda_) * off]
    return Expected(exact(base) + merged, np.max(operands, axis=0), unsure)


# --- weight disentanglement -----------------------------------------------------------------------------------------


def _scores(changes: list[list], ratio: float, calibration: float) -> list[list]:
    """changes[k][j] of model k in column j -> the share of each."""
    count = len(changes[0])
    places = []
    for change in changes:
        order = sorted(range(count), key=lambda j: (change[j], j))
        places.append([Fraction(order.index(j), count) for j in range(count)])
    powers = [[np.exp(Real(p.numerator) / p.denominator) for p in place] for place in places]
    shares = []
    for k, place in enumerate(places):
        mean = sum(place) / count
        softmaxed = [powers[k][j] / sum(other[j] for other in powers) for j in range(count)]
        shares.append([calibration if place[j] > Fraction(ratio) * mean else softmaxed[j] for j in range(count)])
    return shares


def widen(
    x: list[torch.Tensor], base: torch.Tensor, *, name: str = "", ratio: float = 1.0, calibration: float = 1.0
) -> Expected:
    d = [v.astype(Real) for v in deltas(x, base)]
    unsure: Any = False
    if base.ndim < 2:
        total = sum(np.exp(np.abs(v)) for v in d)
        share = []
        unsure = np.zeros(base.numel(), bool)
        for v in d:
            bound = ratio * np.abs(v).sum() / v.size
            share.append(np.where(np.abs(v) > bound, Real(calibration), np.exp(np.abs(v)) / total))
            unsure |= np.abs(np.abs(v) - bound) <= NEAR * bound
    else:
        rows, columns = base.numel() // base.shape[-1], base.shape[-1]
        turn = (
            (lambda v: v.reshape(rows, columns)) if "embed_tokens" in name else (lambda v: v.reshape(rows, columns).T)
        )
        before = turn(exact(base))
        longer, turned = [], []
        for v in d:
            after = before + turn(v)
            longer.append(
                [abs(oracles_gram.norm(b) - oracles_gram.norm(a)) for a, b in zip(before, after, strict=True)]
            )
            turned.append([1 - np.cos(_angle(a, b)) for a, b in zip(before, after, strict=True)])
        mean = (np.array(_scores(longer, ratio, calibration)) + np.array(_scores(turned, ratio, calibration))) / 2
        share = [(np.ones_like(before) * s[:, None]) for s in mean]
        share = [(s if "embed_tokens" in name else s.T).reshape(-1) for s in share]
    terms = [s * v for s, v in zip(share, d, strict=True)]
    operands = [exact(base), *(exact(t) for t in x), *terms]
    return Expected(exact(base) + sum(terms), np.max([np.abs(o) for o in operands], axis=0), unsure)


def _angle(a: np.ndarray, b: np.ndarray) -> Any:
    return oracles_gram.angle_between(oracles_gram.unit(a), oracles_gram.unit(b)) if a.any() and b.any() else Real(0)


# --- spheres, row by row --------------------------------------------------------------------------------------------


def _each(oracle: Callable[..., Expected], x: list[torch.Tensor], base: torch.Tensor | None, **p: Any) -> Expected:
    """An oracle for whole vectors, of each row of matrices."""
    several = [oracle([t[r] for t in x], *([] if base is None else [base[r]]), **p) for r in range(len(x[0]))]
    return Expected(np.concatenate([e.value for e in several]), np.concatenate([e.scale for e in several]))


def nuslerp(
    x: list[torch.Tensor],
    base: torch.Tensor | None = None,
    *,
    weight: Any,
    nuslerp_flatten: bool = True,
    nuslerp_row_wise: bool = False,
) -> Expected:
    shape = x[0].shape
    if nuslerp_flatten or len(shape) < 2 or x[0].numel() == 0:
        return oracles_gram.nuslerp(x, base, weight=weight)

    def rows(t: torch.Tensor) -> torch.Tensor:
        return t.reshape(shape[0], -1).T if nuslerp_row_wise else t.reshape(-1, shape[-1])

    found = _each(oracles_gram.nuslerp, list(map(rows, x)), None if base is None else rows(base), weight=weight)
    if nuslerp_row_wise:
        found.value, found.scale = (v.reshape(-1, shape[0]).T.reshape(-1) for v in (found.value, found.scale))
    return found


def model_stock(x: list[torch.Tensor], base: torch.Tensor, *, filter_wise: bool = False) -> Expected:
    if not filter_wise or base.ndim < 2 or base.numel() == 0:
        return oracles_gram.model_stock(x, base)
    return _each(oracles_gram.model_stock, [t.reshape(-1, t.shape[-1]) for t in x], base.reshape(-1, base.shape[-1]))
