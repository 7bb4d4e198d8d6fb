"""Means weighted by Fisher information: an element counts as much as a model's predictions depend on it.

The Fisher informations of each model come in a checkpoint of their own. Its tensors are read along with the weights,
as auxiliary tensors. The merge is one expression per element, in one read. `normalize` takes one more read first, for
the norms of the informations.
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
    "fisher",
    help="checkpoint of the model's diagonal Fisher informations, one tensor per weight, under the weight's name",
)
LARGEST_EXPONENT = 100  # of a norm: scaling by its power of two then stays within float32


def _check(p: Mapping[str, Any], models: int) -> None:
    check_sum("fisher", p["weight"], "give at least one model a weight above 0")


@method(
    "fisher",
    base=Base.METADATA,
    auxiliary=[FISHER],
    parameters=[
        number("weight", low=0, default=1.0, per_model=True, help="factor of the model's Fisher informations"),
        number("floor", low=0, default=0.0, help="a smaller Fisher information counts as this"),
        choice(
            "floor_of",
            ["all", "first"],
            default="all",
            help="whose informations have the floor; with first, the first model decides where all informations are 0",
        ),
        boolean("normalize", default=False, help="divide each model's Fisher information by its norm"),
        scope("tensor", "model"),
    ],
    check=_check,
    reads="1; 2 with normalize",
    formula="y = sum c_k F_k x_k / sum c_k F_k,  the weighted mean where all F_k are 0\n"
    "F_k = max(fisher_k, floor),  c_k = w_k;  with normalize  c_k = w_k / |fisher_k|",
    paper="Matena and Raffel 2021, Merging models with Fisher-weighted averaging, arXiv 2111.09832",
    notes=[
        "Write `parameters: {fisher: PATH}` under each model. The checkpoint has a tensor of each weight's name and "
        "shape.",
        "The informations of an element are divided by the largest of them, so that small ones do not underflow.",
        "A negative information counts as 0.",
    ],
    differences={
        "mergekit": "mergekit does not implement this method.",
        "the paper": "The authors' code has `normalize: true`, `scope: model`, `floor: 1e-6` and `floor_of: first`.",
    },
)
def fisher(tensor: TensorInfo, p: Mapping[str, Any]) -> Steps:
    """Mean of the models, each element weighted by its Fisher information in that model."""
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
    """The merged element of K inputs and their K informations, inputs K to 2 K - 1. Models of weight 0 are left out."""
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
