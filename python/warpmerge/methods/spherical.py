"""Interpolation on spheres. Every iterate lies in the span of the inputs, so norms and distances say everything."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..ops import Gram, WeightedSum
from .base import Base, Steps, TensorInfo, method, number

PARALLEL = 0.9995  # |cos| above which slerp is lerp, as in mergekit
ZERO_NORM = 1e-8


def slerp_coefficients(norm0_sq: float, norm1_sq: float, distance_sq: float, t: float) -> tuple[float, float, bool]:
    """Coefficients of x_0 and x_1, and whether they are those of a straight line.

    The angle between the unit vectors u and v comes from |u - v|^2 = (|a - b|^2 - (|a| - |b|)^2) / (|a| |b|), which
    does not cancel for near-identical models; a dot product would. A vector shorter than ZERO_NORM has no direction:
    its cosine with anything counts as 0.
    """
    if distance_sq == 0:  # the same tensor twice, however short
        return 1 - t, t, True
    norm0, norm1 = math.sqrt(norm0_sq), math.sqrt(norm1_sq)
    if norm0 <= ZERO_NORM or norm1 <= ZERO_NORM:
        cosine = (norm0_sq + norm1_sq - distance_sq) / 2 / max(norm0, ZERO_NORM) / max(norm1, ZERO_NORM)
        theta = math.pi / 2 if abs(cosine) <= PARALLEL else 0.0
    else:
        chord_sq = max(0.0, distance_sq - (norm0 - norm1) ** 2) / (norm0 * norm1)
        theta = 2 * math.asin(min(1.0, math.sqrt(chord_sq) / 2))
        cosine = 1 - chord_sq / 2
    if abs(cosine) > PARALLEL:
        return 1 - t, t, True
    return math.sin((1 - t) * theta) / math.sin(theta), math.sin(t * theta) / math.sin(theta), False


@method(
    "slerp",
    base=Base.ENDPOINT,
    models=(2, 2),
    parameters=[number("t", required=True, help="0 gives the base model, 1 the other")],
    passes=2,
    paper="Shoemake 1985, Animating rotation with quaternion curves",
    notes="One angle per tensor; where |cos| > 0.9995 (most fine-tunes of one base) it is linear interpolation.",
)
def slerp(tensor: TensorInfo, p: Mapping[str, Any]) -> Steps:
    """Spherical interpolation between two models."""
    gram = yield Gram(relative=False)
    norm0, norm1 = gram.norms_sq
    a, b, straight = slerp_coefficients(norm0, norm1, gram.distances_sq[0][1], p["t"])
    return WeightedSum((a, b), relative=False, agree=straight)
