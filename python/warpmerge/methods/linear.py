"""Weighted means and copies: one pass, nothing to measure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import RecipeError
from ..ops import Copy, WeightedSum
from .base import Base, Steps, TensorInfo, boolean, method, number

WEIGHT = number("weight", required=True, per_model=True, help="coefficient of the model")


def _check_linear(p: Mapping[str, Any]) -> None:
    if p["normalize"] and not 0 < abs(sum(p["weight"])) < float("inf"):
        raise RecipeError(
            "method 'linear': the weights sum to zero or overflow, so they cannot be normalized; set normalize: false."
        )


@method(
    "linear",
    base=Base.DONOR,
    parameters=[WEIGHT, boolean("normalize", default=True, help="divide by the sum of the weights")],
    check=_check_linear,
    paper="Wortsman et al. 2022, Model soups, arXiv 2203.05482",
)
def linear(tensor: TensorInfo, p: Mapping[str, Any]) -> Steps:
    """Weighted mean of the models: sum w_i x_i / sum w_i."""
    total = sum(p["weight"]) if p["normalize"] else 1.0
    return WeightedSum(tuple(w / total for w in p["weight"]), relative=False, agree=p["normalize"])
    yield  # a generator without a measurement


@method(
    "passthrough",
    base=Base.DONOR,
    models=(1, 1),
    parameters=[number("scale", per_model=True, optional=True, help="factor; none: the bytes are copied")],
)
def passthrough(tensor: TensorInfo, p: Mapping[str, Any]) -> Steps:
    """Copies one model, or scales it."""
    scale = p["scale"][0]
    return Copy() if scale is None else WeightedSum((scale,), relative=False)
    yield
