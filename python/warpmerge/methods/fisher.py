"""Means weighted by what each model knows: every element counts by its Fisher information.

The Fisher information of an element says how much a model's predictions depend on it. It comes in a checkpoint beside
each model, whose tensors are read along with the weights. The merge itself is one expression per element, in one
read; normalizing measures the norms of the informations first.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import CheckpointError
from ..expr.expression import Expr, add_up, delta, equal, maximum, where
from ..expr.formula import Formula
from ..requests import Gram, Map
from .auxiliary import AuxiliaryTensor
from .base import Base, Steps, TensorInfo, check_sum
from .geometry import LARGEST
from .parameters import boolean, choice, number, scope
from .registry import method

FISHER = AuxiliaryTensor(
    "fisher", help="checkpoint with the model's diagonal Fisher information, under the weights' names"
)
LARGEST_EXPONENT = 100  # of a norm: scaling by its power of two then stays within float32


def _check(p: Mapping[str, Any], models: int) -> None:
    check_sum("fisher", p["weight"], "give at least one model a weight above 0")


@method(
    "fisher",
    base=Base.METADATA,
    auxiliary=[FISHER],
    parameters=[
        number("weight", low=0, default=1.0, per_model=True, help="how much the model counts beside the others"),
        number("floor", low=0, default=0.0, help="least Fisher information of an element; smaller ones count as it"),
        choice(
            "floor_of",
            ["all", "first"],
            default="all",
            help="whose it is: all models', or the first's, which then has its way where none knows anything",
        ),
        boolean("normalize", default=False, help="divide each model's Fisher information by its norm"),
        scope("tensor", "model"),
    ],
    check=_check,
    reads="1, or 2 with normalize",
    formula="y = sum c_k F_k x_k / sum c_k F_k,  the weighted mean where all F_k are 0\n"
    "F_k = max(fisher_k, floor),  c_k = w_k, with normalize w_k / |fisher_k|",
    paper="Matena and Raffel 2021, Merging models with Fisher-weighted averaging, arXiv 2111.09832",
    notes=[
        "Each model has a checkpoint of Fisher informations, with a tensor of each weight's name and shape: "
        "`parameters: {fisher: PATH}` under the model.",
        "Elements are taken relative to the largest information, so that products of small ones do not vanish.",
        "An information below 0 counts as 0.",
    ],
    differences={
        "mergekit": "mergekit does not implement this method.",
        "the paper": "Its program has `normalize: true`, `scope: model`, `floor: 1e-6` and `floor_of: first`.",
    },
)
def fisher(tensor: TensorInfo, p: Mapping[str, Any]) -> Steps:
    """Mean in which every element counts by its Fisher information in each model."""
    models = range(tensor.models)
    norms = [1.0] * tensor.models
    if p["normalize"]:
        gram = yield Gram(on_deltas=False)
        squares = gram.norms_sq[tensor.models : 2 * tensor.models]
        if not max(squares) < LARGEST:
            raise CheckpointError(
                f"{tensor} has Fisher informations whose squares overflow float64, so they cannot be normalized; "
                "set normalize: false."
            )
        norms = [math.sqrt(n) or 1.0 for n in squares]
    floors = [p["floor"] if p["floor_of"] == "all" or k == 0 else 0.0 for k in models]
    value = fisher_mean(p["weight"], norms, floors)
    return Map(Formula((value,)), on_deltas=False, agree=tensor.models, nan_of=None)


def fisher_mean(weights: Sequence[float], norms: Sequence[float], floors: Sequence[float]) -> Expr:
    """Of inputs K that are followed by their K informations; models of weight 0 are left out."""
    largest = max(weights)
    used = [k for k, weight in enumerate(weights) if weight > 0]
    known, factors = [], []
    for k in used:
        exponent = max(-LARGEST_EXPONENT, min(LARGEST_EXPONENT, math.frexp(norms[k])[1] - 1))
        if floors[k] > 0:  # it is scaled too
            exponent = max(exponent, math.frexp(floors[k])[1] - LARGEST_EXPONENT)
        information = maximum(delta(len(weights) + k), floors[k])
        known.append(information * 2.0**-exponent if exponent else information)
        factors.append(2.0**exponent / norms[k])
    bound = max(1.0, *factors)  # above 1 only of norms whose exponent is bounded
    shares = [weights[k] / largest * (factor / bound) for k, factor in zip(used, factors, strict=True)]
    most = functools.reduce(maximum, known)
    counts = [
        where(equal(most, 0), weights[k] / largest, information / most * share)
        for k, information, share in zip(used, known, shares, strict=True)
    ]
    return add_up([c * delta(k) for k, c in zip(used, counts, strict=True)]) / add_up(counts)
