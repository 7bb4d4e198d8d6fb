"""What each method must compute, from its mathematics alone and by other routes than the package.

Sums run in extended precision, order statistics come from a sort, angles are taken directly, random numbers from
bit_oracles.py. Only one step is taken from the rules for numbers (docs/numerics.md): a delta is rounded once to the
compute type, because magnitudes are compared there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from bit_oracles import lanes, stream_key

Real = np.longdouble
PARALLEL = 0.9995  # slerp is a straight line where |cos| is larger


@dataclass
class Expected:
    """`scale`: the largest operand of each element. `unsure`: a vote so near to zero that rounding may turn it."""

    value: np.ndarray
    scale: np.ndarray
    unsure: np.ndarray | bool = False


# --- number formats -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Format:
    bits: int  # of the significand, the hidden one included
    least: int  # exponent of the smallest normal number
    most: int


FORMATS = {
    torch.bfloat16: Format(8, -126, 127),
    torch.float16: Format(11, -14, 15),
    torch.float32: Format(24, -126, 127),
    torch.float64: Format(53, -1022, 1023),
}

# (ulps, share of the largest operand): an output may be off by their sum.
TOLERANCES = {
    torch.bfloat16: (0.5, 2.0**-21),  # correctly rounded, except where the float32 result crosses a rounding boundary
    torch.float16: (0.5, 2.0**-21),
    torch.float32: (2, 2.0**-22),  # the roundings of K products and sums, and cancellation against the base
    torch.float64: (
        2,
        2.0**-50,
    ),  # the same with 29 bits more; here coefficients are rounded in the steps that make them too
}
SPHERICAL = 1e-6  # share of the largest operand: angles come from float32 sums
TURNING = 64  # roundings between exact votes and the computed ones; a vote within as many of zero is unsure


def exact(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().reshape(-1).numpy().astype(Real)


def ulp(values: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    form = FORMATS[dtype]
    _, exponent = np.frexp(np.abs(values))
    exponent = np.clip(np.where(values == 0, form.least, exponent - 1), form.least, form.most)
    return np.ldexp(Real(1), exponent - form.bits + 1)


def rounded(values: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """To nearest even, once: the quotient by the ulp is exact, so is the product."""
    form = FORMATS[dtype]
    values = np.asarray(values, dtype=Real)
    finite = np.where(np.isfinite(values), values, 0)
    step = ulp(finite, dtype)
    result = np.copysign(np.rint(finite / step) * step, values)
    largest = (2 - Real(2) ** (1 - form.bits)) * Real(2) ** form.most
    result = np.where(np.abs(result) > largest, np.copysign(Real(np.inf), values), result)
    result = np.where(np.isfinite(values), result, values)
    return torch.from_numpy(result.astype(np.float64)).to(dtype)


def assert_accurate(
    got: torch.Tensor, expected: Expected, *, share: float | None = None, most_unsure: float = 0
) -> None:
    ulps, operand = TOLERANCES[got.dtype]
    error = np.abs(exact(got) - expected.value)
    allowed = ulps * ulp(expected.value, got.dtype) + (share or operand) * expected.scale
    unsure = np.broadcast_to(expected.unsure, error.shape)
    assert unsure.mean() <= most_unsure if error.size else True, f"{unsure.mean():.2%} of the votes are near zero"
    wrong = ~(error <= allowed) & ~unsure
    if wrong.any():
        worst = int(np.argmax(np.where(wrong, error / allowed, 0)))
        raise AssertionError(
            f"{int(wrong.sum())} of {error.size} elements; element {worst} is {exact(got)[worst]!r}, "
            f"should be {expected.value[worst]!r} +- {allowed[worst]!r}"
        )


# --- methods --------------------------------------------------------------------------------------------------------


def compute_type(tensors: Sequence[torch.Tensor]) -> type:
    return np.float64 if any(t.dtype == torch.float64 for t in tensors) else np.float32


def deltas(x: Sequence[torch.Tensor], base: torch.Tensor) -> list[np.ndarray]:
    """Rounded once to the compute type."""
    kind = compute_type([*x, base])
    return [(exact(t).astype(kind) - exact(base).astype(kind)) for t in x]


def kept_count(density: float, count: int) -> int:
    return max(1, int(density * count)) if density > 0 else 0


def largest(d: np.ndarray, count: int, keep_all_ties: bool = False) -> np.ndarray:
    """Mask of the `count` largest magnitudes: a stable sort puts the lowest index first among equals."""
    mask = np.zeros(d.size, bool)
    if count == 0 or d.size == 0:
        return mask
    order = np.argsort(-np.abs(d), kind="stable")
    mask[order[:count]] = True
    return np.abs(d) >= np.abs(d[order[count - 1]]) if keep_all_ties else mask


def per_model(value: Any, models: int) -> list:
    return list(value) if isinstance(value, (list, tuple)) else [value] * models


def linear(x: list[torch.Tensor], *, weight: Any, normalize: bool = True) -> Expected:
    weight = [Real(w) for w in per_model(weight, len(x))]
    total = sum(weight) if normalize else Real(1)
    terms = np.stack([w / total * exact(t) for w, t in zip(weight, x, strict=True)])
    inputs = np.stack([exact(t) for t in x])
    return Expected(terms.sum(0), np.maximum(np.abs(terms).max(0), np.abs(inputs).max(0)))


def passthrough(x: list[torch.Tensor], *, scale: float) -> Expected:
    return linear(x, weight=scale, normalize=False)


def slerp(x: list[torch.Tensor], *, t: float) -> Expected:
    a, b = (exact(v) for v in x)
    norm_a, norm_b = np.sqrt((a * a).sum()), np.sqrt((b * b).sum())
    u = a / norm_a if norm_a > 1e-8 else a
    v = b / norm_b if norm_b > 1e-8 else b
    if norm_a > 1e-8 and norm_b > 1e-8:
        angle = 2 * np.arctan2(np.sqrt(((u - v) ** 2).sum()), np.sqrt(((u + v) ** 2).sum()))
    else:
        angle = np.arccos((u * v).sum())
    t = Real(t)
    if abs(np.cos(angle)) > PARALLEL:
        from_a, from_b = (1 - t) * a, t * b
    else:
        from_a, from_b = np.sin((1 - t) * angle) / np.sin(angle) * a, np.sin(t * angle) / np.sin(angle) * b
    operands = np.stack([a, b, from_a, from_b])
    return Expected(from_a + from_b, np.abs(operands).max(0))


def task_arithmetic(
    x: list[torch.Tensor],
    base: torch.Tensor,
    *,
    weight: Any,
    normalize: bool = False,
    lambda_: float = 1.0,
    **_: Any,
) -> Expected:
    keep = [np.ones(base.numel(), bool)] * len(x)
    scale = [Real(1)] * len(x)
    return _merge(x, base, keep, scale, weight, "weights" if normalize else "none", lambda_)


def ties(
    x: list[torch.Tensor], base: torch.Tensor, *, density: Any = 1.0, ties: str = "lowest_index", **p: Any
) -> Expected:
    density = per_model(density, len(x))
    keep = [
        largest(d, kept_count(r, d.size), ties == "keep_all") if r < 1 else np.ones(d.size, bool)
        for d, r in zip(deltas(x, base), density, strict=True)
    ]
    return _elected(x, base, keep, density, {"normalize": True, "rescale": False, **p})


def _drawn(x: list, count: int, density: list[float], seed: int, name: str) -> tuple[list[np.ndarray], list[float]]:
    """Masks and realised densities of random drops."""
    keep, realised = [], []
    for ordinal, share in enumerate(density):
        cut = min(65535, max(1, round(share * 65536))) if 0 < share < 1 else int(share * 65536)
        keep.append(lanes(stream_key(seed, name, ordinal), count).astype(int) < cut)
        realised.append(cut / 65536)
    return keep, realised


def dare_linear(
    x: list[torch.Tensor], base: torch.Tensor, *, seed: int, name: str, weight: Any, density: Any = 1.0, **p: Any
) -> Expected:
    p = {"rescale": "l1", "normalize": False, "divisor": None, "lambda_": 1.0, **p}
    keep, realised = _drawn(x, base.numel(), per_model(density, len(x)), seed, name)
    scale = _rescaling(deltas(x, base), keep, realised, p["rescale"])
    divisor = p["divisor"] or ("weights" if p["normalize"] else "none")
    return _merge(x, base, keep, scale, weight, divisor, p["lambda_"])


def dare_ties(
    x: list[torch.Tensor], base: torch.Tensor, *, seed: int, name: str, density: Any = 1.0, **p: Any
) -> Expected:
    keep, realised = _drawn(x, base.numel(), per_model(density, len(x)), seed, name)
    return _elected(x, base, keep, realised, {"normalize": False, "rescale": "l1", **p})


def _rescaling(d: list[np.ndarray], keep: list[np.ndarray], density: list[float], rescale: Any) -> list[Any]:
    if rescale in (False, "false"):
        return [Real(1)] * len(d)
    if rescale == "inverse_density":
        return [1 / Real(r) if r > 0 else Real(1) for r in density]
    sums = [(np.abs(v.astype(Real)).sum(), np.abs(v.astype(Real))[m].sum()) for v, m in zip(d, keep, strict=True)]
    return [whole / kept if whole >= 1e-7 and kept >= 1e-7 else Real(1) for whole, kept in sums]


def _merge(
    x: list[torch.Tensor], base: torch.Tensor, keep: list, scale: list, weight: Any, divisor: str, lambda_: float
) -> Expected:
    """Without an election: one divisor for all elements, 1 where it would vanish."""
    weight = [Real(w) for w in per_model(weight, len(x))]
    terms = [w * s * np.where(m, d, 0) for w, s, d, m in zip(weight, scale, deltas(x, base), keep, strict=True)]
    by = {"weights": sum(weight), "count": Real(len(x)), "none": Real(1)}[divisor]
    by = by if abs(by) >= 1e-8 else Real(1)
    return _added(x, base, terms, sum(terms) * (Real(lambda_) / by), lambda_ / by)


def _elected(
    x: list[torch.Tensor], base: torch.Tensor, keep: list, density: list[float], p: dict[str, Any]
) -> Expected:
    return elected(x, base, keep, _rescaling(deltas(x, base), keep, density, p["rescale"]), p)


def elected(x: list[torch.Tensor], base: torch.Tensor, keep: list, scale: list, p: dict[str, Any]) -> Expected:
    """scale: of each model a number, or one for each element."""
    p = {"divisor": None, "elect": "weighted", "lambda_": 1.0, **p}
    d = deltas(x, base)
    weight = [Real(w) for w in per_model(p["weight"], len(x))]
    kept = [s * np.where(m, v, 0) for s, v, m in zip(scale, d, keep, strict=True)]
    terms = [w * v for w, v in zip(weight, kept, strict=True)]
    votes = np.stack(terms if p["elect"] == "weighted" else kept)
    tally, turnout = votes.sum(0), np.abs(votes).sum(0)
    elected = np.where(tally >= 0, 1, -1)
    agree = np.sign(votes) == elected
    share = {"weights": weight, "count": [1] * len(x), "none": [0] * len(x)}
    chosen = share[p["divisor"] or ("weights" if p["normalize"] else "none")]
    by = sum(a * w for a, w in zip(agree, chosen, strict=True))
    by = np.where(by == 0, 1, by)
    total = sum(np.where(a, t, 0) for a, t in zip(agree, terms, strict=True))
    expected = _added(x, base, terms, total / by * Real(p["lambda_"]), p["lambda_"] / by)
    # Rounding cannot turn a vote of which every partial sum is a number of the compute type; nor a single vote.
    rounding = np.zeros(base.numel(), bool)
    for partial in (*votes, *np.cumsum(votes, axis=0)):
        rounding |= partial.astype(d[0].dtype) != partial
    contested = rounding & ((votes != 0).sum(0) > 1)
    expected.unsure = contested & (np.abs(tally) <= TURNING * np.finfo(d[0].dtype).eps * turnout)
    return expected


def _added(x: list[torch.Tensor], base: torch.Tensor, terms: list, delta: np.ndarray, factor: Any) -> Expected:
    origin = exact(base)
    value = np.where(delta == 0, origin, origin + delta)
    operands = [origin, *(exact(t) for t in x), *terms, *(t * factor for t in terms)]
    return Expected(value, np.max([np.abs(o) for o in operands], axis=0))
