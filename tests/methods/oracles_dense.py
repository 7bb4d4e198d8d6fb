"""What the methods on matrices compute, by another route: full singular value decompositions, and least squares written
out as such. In float64, from the definitions in the papers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from oracles import kept_count, per_model


def fp64(t: torch.Tensor) -> np.ndarray:
    return t.detach().double().numpy()


def deltas(x: Sequence[torch.Tensor], base: torch.Tensor) -> list[np.ndarray]:
    """As they are seen: rounded once to the compute type."""
    kind = torch.float64 if any(t.dtype == torch.float64 for t in [*x, base]) else torch.float32
    return [fp64(t.to(kind) - base.to(kind)) for t in x]


def svd(a: np.ndarray, cutoff: float, least: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """U, S, V without the singular values below cutoff times the largest."""
    u, s, vt = np.linalg.svd(a, full_matrices=False)
    rank = int((s > cutoff * max(least, s[0])).sum()) if s.size else 0
    return u[:, :rank], s[:rank], vt[:rank].T


def polar(a: np.ndarray) -> np.ndarray:
    u, _, v = svd(a, 1e-6)
    return u @ v.T


def _not_a_matrix(d: list[np.ndarray], weight: list, lambda_: float) -> np.ndarray | None:
    return lambda_ * sum(w * t for w, t in zip(weight, d, strict=True)) / len(d) if d[0].ndim != 2 else None


def tsv(x: Sequence, base: Any, *, weight: Any = 1.0, lambda_: float = 1.0, cutoff: float = 1e-6) -> np.ndarray:
    d, weight = deltas(x, base), per_model(weight, len(x))
    mean = _not_a_matrix(d, weight, lambda_)
    if mean is not None:
        return mean
    most = min(d[0].shape) // len(d)
    us, ss, vs = zip(*(svd(t, cutoff) for t in d), strict=True)
    u = np.concatenate([u[:, :most] for u in us], 1)
    v = np.concatenate([v[:, :most] for v in vs], 1)
    s = np.concatenate([w * s[:most] for w, s in zip(weight, ss, strict=True)])
    return lambda_ * (polar(u) * s) @ polar(v).T if s.size else np.zeros_like(d[0])


def iso_c(x: Sequence, base: Any, *, weight: Any = 1.0, lambda_: float = 1.0, cutoff: float = 1e-6) -> np.ndarray:
    d, weight = deltas(x, base), per_model(weight, len(x))
    mean = _not_a_matrix(d, weight, lambda_)
    if mean is not None:
        return mean
    u, s, v = svd(sum(w * t for w, t in zip(weight, d, strict=True)), cutoff)
    return lambda_ * s.sum() / min(d[0].shape) * u @ v.T


def iso_cts(
    x: Sequence, base: Any, *, weight: Any = 1.0, common: float = 0.8, lambda_: float = 1.0, cutoff: float = 1e-6
) -> np.ndarray:
    d, weight = deltas(x, base), per_model(weight, len(x))
    mean = _not_a_matrix(d, weight, lambda_)
    if mean is not None:
        return mean
    r = min(d[0].shape)
    own = round((r - int(r * common)) / len(d)) * len(d)
    own -= len(d) if own > r else 0
    u, s, v = svd(sum(w * t for w, t in zip(weight, d, strict=True)), cutoff)
    largest = s[0] if s.size else 0.0
    u, s, v = u[:, : r - own], s[: r - own], v[:, : r - own]
    blocks = []
    for w, t in zip(weight, d, strict=True):
        rest = w * (t - u @ (u.T @ t))
        blocks.append([a[..., : own // len(d)] for a in svd(rest, cutoff, largest)])
    us, ss, vs = ([*column, last] for column, last in zip(zip(*blocks, strict=True), (u, s, v), strict=True))
    s = np.concatenate(ss)
    return lambda_ * s.sum() / r * polar(np.concatenate(us, 1)) @ polar(np.concatenate(vs, 1)).T


def knots(
    x: Sequence,
    base: Any,
    *,
    weight: Any = 1.0,
    density: Any = 1.0,
    merge: str = "ties",
    lambda_: float = 1.0,
    cutoff: float = 1e-6,
) -> np.ndarray:
    d, weight, density = deltas(x, base), per_model(weight, len(x)), per_model(density, len(x))
    mean = _not_a_matrix(d, weight, lambda_)
    if mean is not None:
        return mean
    u, s, v = svd(np.concatenate(d, 1), cutoff)
    parts = [np.ascontiguousarray(part) for part in np.split((v * s).T, len(d), 1)]
    for part, share in zip(parts, density, strict=True):
        if part.size:
            magnitudes = np.sort(np.abs(part), axis=None)[::-1]
            count = kept_count(share, part.size)
            part *= np.abs(part) >= (magnitudes[count - 1] * (1 - 1e-12) if count else np.inf)
    values = np.array([w * p for w, p in zip(weight, parts, strict=True)])
    if merge == "task_arithmetic":
        return lambda_ * u @ values.sum(0)
    votes = values.sum(0)
    sign = np.where(np.abs(votes) <= 2.0**-20 * np.abs(values).sum(0), 0, np.sign(votes))
    agree = np.sign(values) == sign
    divisor = (agree * np.reshape(weight, (-1, 1, 1))).sum(0)
    return lambda_ * u @ ((values * agree).sum(0) / np.where(divisor == 0, 1, divisor))


def wudi(x: Sequence, base: Any, *, lambda_: float = 1.0) -> np.ndarray:
    """Row by row: the least t with A t = b in the sense of least squares, A the deltas of length 1 below each other."""
    d = deltas(x, base)
    mean = _not_a_matrix(d, [1.0] * len(d), lambda_)
    if mean is not None:
        return mean
    lengths = [np.linalg.norm(t) or 1.0 for t in d]
    a = np.concatenate([t / n for t, n in zip(d, lengths, strict=True)])
    b = np.concatenate([t @ t.T / n for t, n in zip(d, lengths, strict=True)])
    return lambda_ * np.linalg.lstsq(a, b, rcond=1e-6)[0].T


def wudi_gradient(merged: np.ndarray, d: Sequence[np.ndarray]) -> float:
    """Of the loss at the merged delta, as a share of its terms."""
    terms = [(merged - t) @ t.T @ t / np.sum(t * t) for t in d if t.any()]
    sizes = [np.linalg.norm(t @ t.T @ t) / np.sum(t * t) for t in d if t.any()]
    return float(np.linalg.norm(sum(terms)) / sum(sizes))


def regmean(x: Sequence, *, gram: Sequence, weight: Any = 1.0, alpha: float = 0.9, ridge: float = 1e-6) -> np.ndarray:
    """Rows of G^(1/2) as inputs, the pull towards the mean as further ones."""
    tensors, weight = [fp64(t) for t in x], np.array(per_model(weight, len(x)))
    shares = weight / weight.sum()
    mean = sum(s * t for s, t in zip(shares, tensors, strict=True))
    if gram[0] is None:
        return mean
    grams = [alpha * g + (1 - alpha) * np.diag(np.diag(g)) for g in map(fp64, gram)]
    pull = ridge * np.mean(np.diag(sum(s * g for s, g in zip(shares, grams, strict=True))))
    inputs, outputs = [math.sqrt(pull) * np.eye(len(grams[0]))], [math.sqrt(pull) * mean.T * 0]
    for share, g, t in zip(shares, grams, tensors, strict=True):
        values, vectors = np.linalg.eigh(g)
        root = (vectors * np.sqrt(np.clip(values, 0, None))).T * math.sqrt(share)
        inputs.append(root)
        outputs.append(root @ (t - mean).T)
    return mean + np.linalg.lstsq(np.concatenate(inputs), np.concatenate(outputs), rcond=1e-6)[0].T


def fisher(
    x: Sequence,
    *,
    fisher: Sequence,
    weight: Any = 1.0,
    floor: float = 0.0,
    floor_of: str = "all",
    normalize: bool = False,
) -> np.ndarray:
    weight = per_model(weight, len(x))
    total = norm = np.longdouble(0)
    plain = sum(w * fp64(t) for w, t in zip(weight, x, strict=True)) / sum(weight)
    for k, (w, f, t) in enumerate(zip(weight, fisher, x, strict=True)):
        known = fp64(f).astype(np.longdouble)
        length = np.sqrt((known**2).sum()) if normalize else 1
        known = np.maximum(known, floor if floor_of == "all" or k == 0 else 0)
        total, norm = total + w / (length or 1) * known * fp64(t), norm + w / (length or 1) * known
    return np.where(norm > 0, total / np.where(norm > 0, norm, 1), plain).astype(np.float64)
