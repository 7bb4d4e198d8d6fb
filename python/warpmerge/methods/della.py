"""Drops by rank: the larger an element is in its row, the more likely it is kept.

DELLA drops elements at random like DARE, but the probability to keep an element rises with the rank of its magnitude
in its row, from density - epsilon to density + epsilon. A rank needs the whole row. Most draws are so far from the
threshold of their rank that they are decided without the exact rank, so rows are not sorted (csrc/cpu/by_rank.inl).

With `rescale: l1` one more read measures the masked deltas, so that the rest can be scaled up. With `rescale:
inverse_probability` each element is divided by its own probability, in a single read; that needs every exact rank.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from typing import Any

from ..errors import UsageError
from ..expr.expression import Expr, delta, draw, literal, rank_cut, where, wrap
from ..expr.formula import Formula
from ..random import stream_key
from ..requests import KEEP_ALL, KEEP_NONE, ElectAndSum, Map, Mask, RankMask, Reduce
from .base import Base, Steps, TensorInfo
from .parameters import choice, number
from .registry import method
from .task_vectors import (
    DENSITY,
    DRAWS,
    ELECTED,
    ELECTION,
    INT8_MASK,
    LAMBDA,
    NO_NEGATIVE,
    SUMMED,
    WEIGHT,
    check_elected,
    divisor_option,
    is_sparse,
    merge_kept,
    normalize_option,
    rescaling,
)

STEPS = 65536  # probabilities are drawn in 16 bits
MOST = {"della": 192, "della_linear": 288}  # models: for more, the expression would exceed the longest program
EPSILON = number(
    "epsilon",
    low=0,
    default=0.15,
    per_model=True,
    help="the probability rises from density - epsilon (smallest of the row) to density + epsilon (largest)",
)
RESCALE = choice(
    "rescale",
    ["l1", "inverse_probability", "false"],
    default="l1",
    aliases={True: "l1", False: "false"},
    help="scale up so that the delta keeps its L1 norm (true, l1: mergekit), divide each element by its probability "
    "(paper), or neither",
)


def _check_density(p: Mapping[str, Any], models: int) -> None:
    for density, epsilon in zip(p["density"], p["epsilon"], strict=True):
        if 0 < density < 1 and not (density - epsilon > 0 and density + epsilon < 1):
            most = min(density, 1 - density)
            raise UsageError(
                f"density {density:g} with epsilon {epsilon:g} gives probabilities from {density - epsilon:g} to "
                f"{density + epsilon:g}, but a probability lies between 0 and 1; set epsilon below {most:g}."
            )


def _check_della(p: Mapping[str, Any], models: int) -> None:
    _check_density(p, models)
    check_elected(p, models)


def cuts(tensor: TensorInfo, density: float, epsilon: float) -> tuple[float, float]:
    """The cut of the lowest rank and the step from rank to rank, in 65536ths. One element in a row: the density, 0."""
    if tensor.columns < 2:
        return density * STEPS, 0.0
    return (density - epsilon) * STEPS, 2 * epsilon * STEPS / (tensor.columns - 1)


def decisions(shape: tuple[int, ...], models: int) -> int:
    """Bytes for the decisions of the first pass: a bit per element and model."""
    return models * (math.prod(shape) // 8 + 64)


def drop_by_rank(tensor: TensorInfo, p: Mapping[str, Any]) -> tuple[Mask, ...]:
    """A rank mask for each delta."""
    keep: list[Mask] = []
    for ordinal, (density, epsilon) in enumerate(zip(p["density"], p["epsilon"], strict=True)):
        if 0 < density < 1:
            key = stream_key(tensor.seed, tensor.stream, ordinal)
            keep.append(RankMask(key, *cuts(tensor, density, epsilon), tensor.columns))
        else:
            keep.append(KEEP_ALL if density > 0 else KEEP_NONE)
    return tuple(keep)


def divided(k: int, rule: Mask) -> Expr:
    """The masked delta k, each element divided by its probability to be kept."""
    if not isinstance(rule, RankMask):
        return delta(k) if rule is KEEP_ALL else wrap(0)
    cut = rank_cut(delta(k), rule)
    return where(draw(rule.key) < cut, delta(k) / (cut * literal(1 / STEPS)), 0)


def _della(tensor: TensorInfo, p: Mapping[str, Any], *, elect: bool) -> Generator[Reduce, Any, Map | ElectAndSum]:
    if not is_sparse(p) or not tensor.count:
        whole = tuple(KEEP_ALL if density > 0 else KEEP_NONE for density in p["density"])
        return merge_kept(p, whole, [1.0] * tensor.models, elect=elect)
    keep = drop_by_rank(tensor, p)
    if p["rescale"] == "inverse_probability":
        left = [divided(k, rule) for k, rule in enumerate(keep)]
        record = merge_kept(p, (), [1.0] * tensor.models, elect=elect)
        # A dropped NaN or infinity stays dropped.
        return Map(Formula((record.merged(left),), tensor.columns), on_deltas=True, nan_of=None)
    scale = yield from rescaling(p, keep)
    return merge_kept(p, keep, scale, elect=elect)


READS = "1 by default; 2 with rescale: l1 if a density is between 0 and 1"
DROPPED = """t_k = r_k m_k d_k,  m_k = 1 with probability q_k, else 0, drawn for each element
q_k = density_k - epsilon_k + 2 epsilon_k rank / (C - 1);  q_k = density_k in rows of one element
rank = place of |d_k| in its row of C elements, from 0 (smallest) to C - 1;  of equals the first is lower
r_k = |d_k|_1 / |m_k d_k|_1 (rescale: l1),  1 / q_k (inverse_probability),  1 (false)
"""
PAPER = "Deep et al. 2024, DELLA-Merging, arXiv 2406.11617"
NOTES = [
    "Rows lie along the last dimension. A vector is one row. A density of 1 keeps all elements, a density of 0 none.",
    "Probabilities are rounded to multiples of 1/65536. rescale: inverse_probability divides by the rounded ones.",
]
IN_MERGEKIT = [
    DRAWS,
    "mergekit's rows lie along the second dimension, in tensors of three or more dimensions too.",
    "mergekit's ranks in bfloat16 are not exact in rows of more than 256 elements. warpmerge's are.",
    "Rows of one element are an error in mergekit.",
]
IN_PAPER = [
    "The paper rescales each element by 1 / q_k. That takes one pass instead of two.",
    "The paper's epsilon is the whole width of the window: twice warpmerge's.",
]


@method(
    "della",
    base=Base.REFERENCE,
    models=(1, MOST["della"]),
    parameters=[WEIGHT, DENSITY, EPSILON, normalize_option(True), RESCALE, *ELECTED],
    check=_check_della,
    reads=READS,
    memory=decisions,
    formula=DROPPED + ELECTION,
    paper=PAPER,
    notes=NOTES,
    differences={"mergekit": [*IN_MERGEKIT, NO_NEGATIVE], "the paper": IN_PAPER},
    presets={"mergekit": {}, "paper": {"rescale": "inverse_probability"}},
)
def della(tensor: TensorInfo, p: Mapping[str, Any]) -> Steps:
    """Drops elements of each row, smaller ones more likely, then elects a sign for each element as in TIES."""
    return (yield from _della(tensor, p, elect=True))


@method(
    "della_linear",
    base=Base.REFERENCE,
    models=(1, MOST["della_linear"]),
    parameters=[WEIGHT, DENSITY, EPSILON, normalize_option(False), RESCALE, divisor_option(), LAMBDA, INT8_MASK],
    check=_check_density,
    reads=READS,
    memory=decisions,
    formula=DROPPED + SUMMED,
    paper=PAPER,
    notes=NOTES,
    differences={"mergekit": IN_MERGEKIT, "the paper": ["The paper elects signs, as della does.", *IN_PAPER]},
    presets={"mergekit": {}, "paper": {"rescale": "inverse_probability"}},
)
def della_linear(tensor: TensorInfo, p: Mapping[str, Any]) -> Steps:
    """Drops elements of each row, smaller ones more likely, and adds the weighted sum of the rest to the base."""
    return (yield from _della(tensor, p, elect=False))
