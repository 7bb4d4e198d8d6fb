"""Tensors to merge: a base and three models, made from a seed that their kind and shape give."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from functools import cache

import numpy as np

MODELS = 3
Shape = tuple[int, ...]
Tensors = tuple[np.ndarray, ...]  # float32, the base first


def random(rng: np.random.Generator, n: int) -> list[np.ndarray]:
    """Fine-tunes of a base, with weights of a usual size."""
    base = rng.normal(scale=0.1, size=n)
    return [base, *(base + rng.normal(scale=0.02, size=n) for _ in range(MODELS))]


def exact(rng: np.random.Generator, n: int) -> list[np.ndarray]:
    """Multiples of 2^-22. No two deltas of a model have the same magnitude. All deltas are exact in float32, and so are
    their sums with weights of a few bits. So no threshold and no election depends on rounding."""
    unit, most = 2.0**-22, max(1 << 16, 2 * n)
    base = rng.integers(-(1 << 21), 1 << 21, n)
    deltas = (rng.permutation(most)[:n] + 1 for _ in range(MODELS))
    return [base * unit, *((base + d * rng.choice([-1, 1], n)) * unit for d in deltas)]


def sparse(rng: np.random.Generator, n: int) -> list[np.ndarray]:
    """Each model changes half of the base's elements."""
    base, *models = exact(rng, n)
    return [base, *(np.where(rng.random(n) < 0.5, base, m) for m in models)]


def small(rng: np.random.Generator, n: int) -> list[np.ndarray]:
    """Deltas of about 1e-5. Each model has larger deltas than the one before it."""
    base = rng.normal(scale=0.1, size=n)
    return [base, *(base + rng.normal(scale=4.0**k * 1e-5, size=n) for k in range(MODELS))]


def wide(rng: np.random.Generator, n: int) -> list[np.ndarray]:
    """Unrelated models. Their angles are near a right angle, and their lengths differ."""
    return [rng.normal(scale=0.1 * (1 + k), size=n) for k in range(MODELS + 1)]


def frozen(rng: np.random.Generator, n: int) -> list[np.ndarray]:
    """All models equal the base."""
    return [rng.normal(scale=0.1, size=n)] * (MODELS + 1)


def identical(rng: np.random.Generator, n: int) -> list[np.ndarray]:
    """The models equal each other."""
    base, model, *_ = exact(rng, n)
    return [base, *[model] * MODELS]


def opposite(rng: np.random.Generator, n: int) -> list[np.ndarray]:
    """The second model is the first one's negative; the base is 0."""
    model = rng.normal(scale=0.1, size=n)
    return [np.zeros(n), model, -model, model]


KINDS: dict[str, Callable[[np.random.Generator, int], list[np.ndarray]]] = {
    f.__name__: f for f in (random, exact, sparse, small, wide, frozen, identical, opposite)
}


@cache
def tensors(kind: str, shape: Shape) -> Tensors:
    """Base and models of this kind, float32."""
    rng = np.random.default_rng([zlib.crc32(kind.encode()), *shape])
    return tuple(np.asarray(v, np.float32).reshape(shape) for v in KINDS[kind](rng, math.prod(shape)))
