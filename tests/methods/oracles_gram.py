"""What the methods that solve on norms and distances must compute: the same mathematics on the whole vectors.

Nothing is expressed in coefficients here. Means, medians and angles are found by moving vectors in extended precision.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from oracles import Expected, Real, deltas, exact, per_model

Vectors = list[np.ndarray]


def norm(v: np.ndarray) -> Any:
    return np.sqrt((v * v).sum())


def unit(v: np.ndarray) -> np.ndarray:
    return v / norm(v) if v.any() else v


def angle_between(u: np.ndarray, v: np.ndarray) -> Any:
    """Of unit vectors; neither a small nor a flat angle cancels."""
    return 2 * np.arctan2(norm(u - v), norm(u + v))


def _vectors(x: Sequence[torch.Tensor], base: torch.Tensor | None) -> Vectors:
    return [exact(t) for t in x] if base is None else [d.astype(Real) for d in deltas(x, base)]


def _expected(x: Sequence[torch.Tensor], base: torch.Tensor | None, merged: np.ndarray, *terms: np.ndarray) -> Expected:
    """`merged` is a delta if there is a base."""
    origin = np.zeros_like(merged) if base is None else exact(base)
    operands = [origin, merged, *(exact(t) for t in x), *terms]
    return Expected(origin + merged, np.max([np.abs(o) for o in operands], axis=0))


# --- linear ---------------------------------------------------------------------------------------------------------


def ema(x: Sequence[torch.Tensor], *, decay: float) -> Expected:
    mean = exact(x[0])
    for t in x[1:]:
        mean = Real(decay) * mean + (1 - Real(decay)) * exact(t)
    return _expected(x, None, mean)


def lawa(x: Sequence[torch.Tensor], *, k: int | None = None) -> Expected:
    return _expected(x, None, np.mean([exact(t) for t in x[-(k or len(x)) :]], axis=0))


def expo(x: Sequence[torch.Tensor], base: torch.Tensor, *, alpha: float) -> Expected:
    (delta,) = _vectors(x, base)
    return _expected(x, base, delta + Real(alpha) * delta)


# --- spheres --------------------------------------------------------------------------------------------------------


def nuslerp(x: Sequence[torch.Tensor], base: torch.Tensor | None = None, *, weight: Any) -> Expected:
    a, b = _vectors(x, base)
    first, second = (Real(w) for w in per_model(weight, 2))
    t = second / (first + second)
    angle = angle_between(unit(a), unit(b)) if a.any() and b.any() else Real(math.pi) / 2
    from_a, from_b = (1 - t) * a, t * b
    if np.sin(angle) > 1e-6:
        from_a, from_b = np.sin((1 - t) * angle) / np.sin(angle) * a, np.sin(t * angle) / np.sin(angle) * b
    return _expected(x, base, from_a + from_b, from_a, from_b)


def multislerp(
    x: Sequence[torch.Tensor],
    base: torch.Tensor | None = None,
    *,
    weight: Any,
    normalize_weights: bool = True,
    eps: float = 1e-8,
) -> Expected:
    """With the tangent step, which the package leaves out."""
    vectors = _vectors(x, base)
    weight = [Real(w) for w in per_model(weight, len(x))]
    weight = [w / sum(weight) for w in weight] if normalize_weights else weight
    units = [v / (norm(v) + Real(eps)) if v.any() else v for v in vectors]
    mean = sum(w * u for w, u in zip(weight, units, strict=True))
    if norm(mean) <= max(eps, 1e-6 * float(sum(np.abs(weight)))):
        return _expected(x, base, sum(w * v for w, v in zip(weight, vectors, strict=True)))
    mean = unit(mean)
    tangent = sum(w * (u - (u * mean).sum() * mean) for w, u in zip(weight, units, strict=True))
    step = norm(tangent)
    direction = np.cos(step) * mean + (np.sin(step) / step * tangent if step > 0 else 0)
    length = sum(w * norm(v) for w, v in zip(weight, vectors, strict=True))
    return _expected(x, base, length * direction)


def karcher(x: Sequence[torch.Tensor], *, max_iter: int = 10, tol: float = 1e-5) -> Expected:
    vectors = _vectors(x, None)
    if not any(v.any() for v in vectors):
        return _expected(x, None, vectors[0])
    units = [unit(v) for v in vectors if v.any()]
    mean = sum(units) / len(x)
    mean = unit(mean) if norm(mean) > max(tol, 1e-6) else units[0]
    for _ in range(max_iter):
        tangent = np.zeros_like(mean)
        for u in units:
            angle = angle_between(u, mean)
            if angle < math.pi - 1e-6:
                stretch = angle / np.sin(angle) if angle > 0 else Real(1)
                tangent += stretch / len(x) * (u - (u * mean).sum() * mean)
        step = norm(tangent)
        if step <= tol:
            break
        mean = unit(np.cos(step) * mean + np.sin(step) * tangent / step)
    return _expected(x, None, sum(norm(v) for v in vectors) / len(x) * mean)


def model_stock(x: Sequence[torch.Tensor], base: torch.Tensor) -> Expected:
    vectors = _vectors(x, base)
    models = len(x)
    cosines = [
        (unit(vectors[i]) * unit(vectors[k])).sum() if vectors[i].any() and vectors[k].any() else Real(0)
        for i in range(models)
        for k in range(i)
    ]
    cosine = sum(cosines) / len(cosines)
    below = 1 + (models - 1) * cosine
    t = models * cosine / below if below > 1e-6 else Real(0)
    terms = [t * v / models for v in vectors]
    return _expected(x, base, t * sum(vectors) / models, *terms)


# --- robust ---------------------------------------------------------------------------------------------------------


def best(x: Sequence[torch.Tensor], f: int | None) -> list[int]:
    """Krum's order of the models."""
    vectors, models = _vectors(x, None), len(x)
    f = (models - 3) // 2 if f is None else f
    scores = []
    for v in vectors:
        to_others = sorted(((v - other) ** 2).sum() for other in vectors if other is not v)
        scores.append(sum(to_others[: models - f - 2]))
    return list(np.argsort(np.array(scores), kind="stable"))


def krum(x: Sequence[torch.Tensor], *, f: int | None = None) -> Expected:
    return _expected(x, None, exact(x[best(x, f)[0]]))


def multi_krum(x: Sequence[torch.Tensor], *, f: int | None = None, m: int | None = None) -> Expected:
    m = m or len(x) - ((len(x) - 3) // 2 if f is None else f) - 2
    return _expected(x, None, sum(exact(x[i]) for i in best(x, f)[:m]) / m)


def geometric_median(
    x: Sequence[torch.Tensor], *, weight: Any = 1.0, eps: float = 1e-6, max_iter: int = 100, tol: float = 1e-6
) -> Expected:
    vectors = _vectors(x, None)
    weight = [Real(w) for w in per_model(weight, len(x))]
    weight = [w / sum(weight) for w in weight]

    def distances(point: np.ndarray) -> list:
        return [norm(point - v) for v in vectors]

    point = sum(w * v for w, v in zip(weight, vectors, strict=True))
    objective = sum(w * d for w, d in zip(weight, distances(point), strict=True))
    for _ in range(max_iter):
        pull = [w / max(Real(eps), d) for w, d in zip(weight, distances(point), strict=True)]
        point = sum(b * v for b, v in zip(pull, vectors, strict=True)) / sum(pull)
        before, objective = objective, sum(w * d for w, d in zip(weight, distances(point), strict=True))
        if abs(before - objective) <= tol * before:
            break
    return _expected(x, None, point)


def norm_clipped_mean(
    x: Sequence[torch.Tensor], base: torch.Tensor, *, weight: Any = 1.0, clip: float | str | None = None
) -> Expected:
    vectors = _vectors(x, base)
    weight = [Real(w) for w in per_model(weight, len(x))]
    limit = np.median([float(norm(v)) for v in vectors]) if clip in (None, "auto") else Real(clip)
    clipped = [v * (min(Real(1), limit / norm(v)) if v.any() else 1) for v in vectors]
    return _expected(x, base, sum(w * v for w, v in zip(weight, clipped, strict=True)) / sum(weight))
