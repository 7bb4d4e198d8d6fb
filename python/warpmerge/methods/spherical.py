"""Interpolation on spheres: means of tensors that keep their norm.

The mean of two vectors is shorter than both; interpolation on a sphere keeps their length. One read measures the norms
and mutual distances of the K tensors. All further steps work on these few numbers in float64, the iterations of
`karcher` too. A second read forms the sum with the coefficients that they give. So iterations cost nothing, however
large the model is. `nuslerp` and `model_stock` can do the same for each row (rows.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from operator import mul
from typing import Any

from ..errors import UsageError
from ..requests import WeightedSum
from .base import Base, Steps, TensorInfo, check_sum, total
from .geometry import (
    NO_DIRECTION,
    Table,
    all_equal,
    angle,
    chord_sq,
    chords_sq,
    chords_to,
    lengths,
    measure,
    norm_of_units,
)
from .linear import WEIGHT
from .parameters import boolean, integer, number
from .registry import method
from .rows import interpolated, is_matrix, stock, vectors_of

PARALLEL = 0.9995  # |cos| above which slerp is lerp, as in mergekit
ZERO_NORM = 1e-8
ZERO_SUM = 1e-6  # if the weights of nuslerp sum to less, t is not defined (mergekit)


def slerp_coefficients(norm0_sq: float, norm1_sq: float, distance_sq: float, t: float) -> tuple[float, float, bool]:
    """Coefficients of x_0 and x_1, and whether they are those of a straight line.

    A vector shorter than ZERO_NORM has no direction: its cosine with anything counts as 0.
    """
    if distance_sq == 0:  # the same tensor twice, however short
        return 1 - t, t, True
    norm0, norm1 = math.sqrt(norm0_sq), math.sqrt(norm1_sq)
    if norm0 <= ZERO_NORM or norm1 <= ZERO_NORM:
        cosine = (norm0_sq + norm1_sq - distance_sq) / 2 / max(norm0, ZERO_NORM) / max(norm1, ZERO_NORM)
        theta = math.pi / 2 if abs(cosine) <= PARALLEL else 0.0
    else:
        chord = chord_sq(norm0, norm1, distance_sq)
        theta, cosine = angle(chord), 1 - chord / 2
    if abs(cosine) > PARALLEL:
        return 1 - t, t, True
    return *_arc(theta, t), False


def _arc(theta: float, t: float) -> tuple[float, float]:
    return math.sin((1 - t) * theta) / math.sin(theta), math.sin(t * theta) / math.sin(theta)


@method(
    "slerp",
    base=Base.ENDPOINT,
    models=(2, 2),
    parameters=[number("t", required=True, help="0 gives the base model, 1 the other")],
    formula="""y = (sin((1 - t) theta) x_0 + sin(t theta) x_1) / sin theta,  theta = angle(x_0, x_1)
y = (1 - t) x_0 + t x_1  if |cos theta| > 0.9995""",
    paper="Shoemake 1985, Animating rotation with quaternion curves",
    notes=[
        "One angle per tensor. Most fine-tunes of one base have |cos theta| > 0.9995.",
        "A tensor of zeros counts as orthogonal to the other.",
    ],
    differences={
        "mergekit": "mergekit takes the angle from a dot product in float32, warpmerge from distances in float64."
    },
    presets={"mergekit": {}},
)
def slerp(tensor: TensorInfo, p: Mapping[str, Any]) -> Steps:
    """Spherical interpolation between two models."""
    gram = yield from measure(tensor, on_deltas=False)
    norm0, norm1 = gram.norms_sq
    a, b, straight = slerp_coefficients(norm0, norm1, gram.distances_sq[0][1], p["t"])
    return WeightedSum((a, b), on_deltas=False, agree=straight)


def _check_nuslerp(p: Mapping[str, Any], models: int) -> None:
    if not ZERO_SUM <= abs(total(p["weight"])) < float("inf"):
        raise UsageError(
            "method 'nuslerp': the weights sum to zero or overflow, so t, the second weight's share of the sum, is not "
            "defined; weights of 1 and 1 give the middle."
        )


@method(
    "nuslerp",
    base=Base.OPTIONAL,
    models=(2, 2),
    parameters=[
        WEIGHT,
        boolean("nuslerp_flatten", default=True, help="true: one angle per tensor; false: one per row or column"),
        boolean(
            "nuslerp_row_wise",
            default=False,
            help="with nuslerp_flatten: false, one angle for each vector along the first dimension, not along the last",
        ),
    ],
    check=_check_nuslerp,
    formula="""t = w_2 / (w_1 + w_2),  theta = angle(v_1, v_2),  v_k = d_k with a base, else x_k
y = [x_0 +] (sin((1 - t) theta) v_1 + sin(t theta) v_2) / sin theta
y = [x_0 +] (1 - t) v_1 + t v_2  if sin theta < 1e-6""",
    notes=[
        "Interpolates spherically at any angle. With a base_model it interpolates the deltas. Their angles are large.",
        "nuslerp_row_wise: true means columns, as in mergekit: vectors along the first dimension.",
    ],
    differences={
        "mergekit": [
            "Weights whose sum is nearly 0 are an error.",
            "warpmerge recognises opposite vectors and vectors of zeros exactly.",
        ]
    },
    presets={"mergekit": {}},
)
def nuslerp(tensor: TensorInfo, p: Mapping[str, Any]) -> Steps:
    """Spherical interpolation between two models by weight, or between their deltas."""
    t = p["weight"][1] / total(p["weight"])
    if not p["nuslerp_flatten"] and is_matrix(tensor):
        along_first = p["nuslerp_row_wise"]
        vectors = yield from vectors_of(tensor, along_first=along_first)
        return interpolated(tensor, vectors, t, along_first=along_first)
    gram = yield from measure(tensor, on_deltas=True)
    theta = angle(chords_sq(gram)[0][1])
    if all_equal(gram) or math.sin(theta) < NO_DIRECTION:
        return WeightedSum((1 - t, t), on_deltas=True, agree=True)
    return WeightedSum(_arc(theta, t), on_deltas=True)


def _check_multislerp(p: Mapping[str, Any], models: int) -> None:
    if p["normalize_weights"]:
        check_sum("multislerp", p["weight"], "set normalize_weights: false")


@method(
    "multislerp",
    base=Base.OPTIONAL,
    parameters=[
        WEIGHT,
        boolean("normalize_weights", default=True, help="divide by the sum of the weights"),
        number(
            "eps",
            low=0,
            default=1e-8,
            help="is added to a norm before the division by it; a shorter sum of directions counts as 0",
        ),
    ],
    check=_check_multislerp,
    formula="""m = sum w_k v_k / (|v_k| + eps),  v_k = d_k with a base, else x_k
y = [x_0 +] (sum w_k |v_k|) m / |m|
y = [x_0 +] sum w_k v_k  if the directions cancel: |m| near 0
with normalize_weights each w_k is divided by sum w_k""",
    paper="Goddard, multislerp (mergekit)",
    notes="The direction is the weighted mean of the directions. The norm is the weighted mean of the norms.",
    differences={"mergekit": "mergekit adds a tangent step. It is zero in exact arithmetic, so warpmerge has none."},
    presets={"mergekit": {}},
)
def multislerp(tensor: TensorInfo, p: Mapping[str, Any]) -> Steps:
    """Weighted mean of any number of models on a sphere, or of their deltas."""
    gram = yield from measure(tensor, on_deltas=True)
    by = total(p["weight"]) if p["normalize_weights"] else 1.0
    weight = [w / by for w in p["weight"]]
    mean = WeightedSum(tuple(weight), on_deltas=True, agree=p["normalize_weights"])
    if all_equal(gram) and p["normalize_weights"]:
        return mean
    norms = lengths(gram)
    units = [w * n / (n + p["eps"]) if n > 0 else 0.0 for w, n in zip(weight, norms, strict=True)]
    length = norm_of_units(units, chords_sq(gram))
    if length <= max(p["eps"], NO_DIRECTION * math.fsum(map(abs, weight))):
        return mean
    return _along(units, norms, math.fsum(map(mul, weight, norms)) / length)


def _along(units: Sequence[float], norms: Sequence[float], length: float) -> WeightedSum:
    """length * sum units_i u_i in terms of the vectors themselves."""
    coefficients = (length * c / n if n > 0 else 0.0 for c, n in zip(units, norms, strict=True))
    return WeightedSum(tuple(coefficients), on_deltas=True)


@method(
    "karcher",
    base=Base.METADATA,
    parameters=[
        integer("max_iter", low=0, default=10, help="largest number of steps; a step reads nothing"),
        number("tol", low=0, default=1e-5, help="a step shorter than this (radians) is the last one"),
    ],
    paper="Karcher 1977, Riemannian center of mass and mollifier smoothing",
    formula="""y = (mean of |x_k|) u,  u = the unit vector with the least sum angle(u, x_k)^2
u <- cos|s| u + sin|s| s / |s|,  s = mean of (theta_k / sin theta_k) (x_k / |x_k| - cos theta_k u),
theta_k = angle(u, x_k);  u starts along sum x_k / |x_k|""",
    notes="All models count the same. A tensor of zeros has no direction: it counts in the mean norm only.",
    differences={
        "mergekit": "mergekit averages the base_model too. warpmerge does so only if it is listed under models."
    },
    presets={"mergekit": {}},
)
def karcher(tensor: TensorInfo, p: Mapping[str, Any]) -> Steps:
    """Mean of the models on a sphere: the direction of the least sum of squared angles, with the mean norm."""
    gram = yield from measure(tensor, on_deltas=False)
    share = 1 / tensor.models
    if all_equal(gram):
        return WeightedSum((share,) * tensor.models, on_deltas=False, agree=True)
    norms = lengths(gram)
    parts = [share if n > 0 else 0.0 for n in norms]
    units = _karcher_mean(parts, chords_sq(gram), p["max_iter"], p["tol"])
    return _along(units, norms, math.fsum(norms) * share)


def _karcher_mean(parts: Sequence[float], chords: Table, max_iter: int, tol: float) -> list[float]:
    """Coefficients of the unit vectors for their mean; `parts`: how much each one counts.

    A vector opposite to the mean pulls in no direction and is passed over. If all vectors cancel, the mean starts at
    the first one.
    """
    length = norm_of_units(parts, chords)
    if length > max(tol, NO_DIRECTION):
        mean = [c / length for c in parts]
    else:
        first = next(i for i, part in enumerate(parts) if part > 0)
        mean = [float(i == first) for i in range(len(parts))]
    for _ in range(max_iter):
        to = chords_to(mean, chords)
        pull = [part * _stretch(angle(d)) for part, d in zip(parts, to, strict=True)]
        along = math.fsum(g * (1 - d / 2) for g, d in zip(pull, to, strict=True))
        step = [g - along * c for g, c in zip(pull, mean, strict=True)]
        length = norm_of_units(step, chords)
        if length <= tol:
            break
        moved = [math.cos(length) * c + math.sin(length) / length * s for c, s in zip(mean, step, strict=True)]
        length = norm_of_units(moved, chords)
        mean = [c / length for c in moved]
    return mean


def _stretch(theta: float) -> float:
    """theta / sin theta, 0 where it has no value."""
    if theta > math.pi - NO_DIRECTION:
        return 0.0
    return theta / math.sin(theta) if theta > 0 else 1.0


MOST_FILTERS = 16  # models: every pair has a product for each row


def _check_model_stock(p: Mapping[str, Any], models: int) -> None:
    if p["filter_wise"] and models > MOST_FILTERS:
        raise UsageError(
            f"method 'model_stock': filter_wise: true takes at most {MOST_FILTERS} models besides the base, got "
            f"{models}; list fewer models, or set filter_wise: false for one angle per tensor."
        )


@method(
    "model_stock",
    base=Base.REFERENCE,
    models=(2, None),
    parameters=[boolean("filter_wise", default=False, help="true: one angle per row; a vector is one row")],
    check=_check_model_stock,
    paper="Jang et al. 2024, Model Stock: All we need is just a few fine-tuned models, arXiv 2403.19522",
    formula="""c = mean of cos angle(d_i, d_j) over all pairs
t = K c / (1 + (K - 1) c)
y = x_0 + t (mean of d_k)""",
    notes=[
        "If the mean cosine is negative, t is negative: the result lies on the other side of the base, as in mergekit.",
        "If the deltas cancel, the result is the base.",
    ],
    differences={
        "mergekit": "mergekit makes the cosines of small deltas smaller.",
        "the paper": "The paper does not define the angle of more than two models. Here, as in mergekit, the cosine is "
        "the mean over all pairs.",
    },
    presets={"mergekit": {}},
)
def model_stock(tensor: TensorInfo, p: Mapping[str, Any]) -> Steps:
    """Between the base and the mean of the models: the more the deltas point one way, the nearer to the mean."""
    if p["filter_wise"] and is_matrix(tensor):
        return stock(tensor, (yield from vectors_of(tensor, along_first=False)))
    gram = yield from measure(tensor, on_deltas=True)
    models, chords = tensor.models, chords_sq(gram)
    pairs = [1 - chords[i][k] / 2 for i in range(models) for k in range(i)]
    cosine = math.fsum(pairs) / len(pairs)
    if 1 + (models - 1) * cosine < NO_DIRECTION:
        cosine = 0.0
    share = cosine / (1 + (models - 1) * cosine)
    return WeightedSum((share,) * models, on_deltas=True)
