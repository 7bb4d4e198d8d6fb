"""Drops by rank: of each row's changes the larger ones are kept more likely, drawn for each element."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any

from ..elementary import nearest_whole
from ..errors import RecipeError
from ..formula import Expr, Formula, delta, draw, maximum, minimum, rank, where, wrap
from ..ops import KEEP_ALL, KEEP_NONE, Apply, Consensus, Moments
from ..random import stream_key
from .base import Base, Steps, TensorInfo
from .elect import merged
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
    restored,
)

STEPS = 65536  # probabilities are drawn in 16 bits
EPSILON = number(
    "epsilon",
    low=0,
    default=0.15,
    per_model=True,
    help="the keep probability goes from density - epsilon (least of the row) to density + epsilon (largest)",
)
RESCALE = choice(
    "rescale",
    ["l1", "inverse_probability", "false"],
    default="l1",
    aliases={True: "l1", False: "false"},
    help="restore the delta's L1 norm (true, l1: mergekit), divide each element by its probability (paper), or neither",
)


def _check_density(p: Mapping[str, Any], models: int) -> None:
    for density, epsilon in zip(p["density"], p["epsilon"], strict=True):
        if 0 < density < 1 and not (density - epsilon > 0 and density + epsilon < 1):
            most = min(density, 1 - density)
            raise RecipeError(
                f"density {density:g} with epsilon {epsilon:g} gives probabilities from {density - epsilon:g} to "
                f"{density + epsilon:g}, which must lie between 0 and 1: set epsilon below {most:g}."
            )


def _check_della(p: Mapping[str, Any], models: int) -> None:
    _check_density(p, models)
    check_elected(p, models)


def cuts(tensor: TensorInfo, k: int, density: float, epsilon: float) -> Expr:
    """Keep probabilities in 65536ths, from 1 to 65535: linear in the rank, the density where a row has one element."""
    if tensor.columns < 2:
        share = wrap(density * STEPS)
    else:
        share = (density - epsilon) * STEPS + rank(k) * (2 * epsilon * STEPS / (tensor.columns - 1))
    return minimum(maximum(nearest_whole(share, tensor.wide), 1), STEPS - 1)


def drop_by_rank(tensor: TensorInfo, p: Mapping[str, Any]) -> list[Expr]:
    """What is left of each delta, divided by its probability if `rescale` says so."""
    left = []
    for k, (density, epsilon) in enumerate(zip(p["density"], p["epsilon"], strict=True)):
        d = delta(k)
        if 0 < density < 1:
            cut = cuts(tensor, k, density, epsilon)
            kept = d / (cut * (1 / STEPS)) if p["rescale"] == "inverse_probability" else d
            left.append(where(draw(stream_key(tensor.seed, tensor.name, k)) < cut, kept, 0))
        else:
            left.append(d if density > 0 else wrap(0))
    return left


def _rescaling(tensor: TensorInfo, p: Mapping[str, Any], left: Sequence[Expr]) -> Generator[Moments, Any, list[float]]:
    """The factor of each delta that brings it back to its L1 norm."""
    scale = [1.0] * tensor.models
    dropped = [k for k, density in enumerate(p["density"]) if 0 < density < 1]
    if p["rescale"] == "l1" and dropped:
        values = tuple(e for k in dropped for e in (delta(k), left[k]))
        sums = yield Moments((KEEP_ALL,) * len(values), only_l1=True, of=Formula(values, tensor.columns))
        for k, whole, rest in zip(dropped, sums[::2], sums[1::2], strict=True):
            scale[k] = restored(whole.sum_abs, rest.sum_abs)
    return scale


def _della(tensor: TensorInfo, p: Mapping[str, Any], *, elect: bool) -> Generator[Moments, Any, Apply | Consensus]:
    if not is_sparse(p) or not tensor.count:
        keep = tuple(KEEP_ALL if density > 0 else KEEP_NONE for density in p["density"])
        return merge_kept(p, keep, [1.0] * tensor.models, elect=elect)
    left = drop_by_rank(tensor, p)
    scale = yield from _rescaling(tensor, p, left)
    value = merged(merge_kept(p, (), scale, elect=elect), left)
    return Apply(Formula((value,), tensor.columns), relative=True)


def _passes(p: Mapping[str, Any]) -> int:
    """1 by default; 2 where a density is between 0 and 1, unless rescale is inverse_probability or false"""
    return 1 + (is_sparse(p) and p["rescale"] == "l1")


DROPPED = """t_k = r_k m_k d_k,  m_k = 1 with probability q_k, else 0, drawn for each element
q_k = density_k - epsilon_k + 2 epsilon_k rank / (C - 1),  density_k for rows of one element
rank = 0 to C - 1: place of |d_k| among those of its row of C elements, of equals the first is lower
r_k = |d_k|_1 / |m_k d_k|_1 (rescale: l1),  1 / q_k (inverse_probability),  1 (false)
"""
PAPER = "Deep et al. 2024, DELLA-Merging, arXiv 2406.11617"
NOTES = [
    "Rows are along the last dimension; a vector is one row. A density of 1 keeps all, one of 0 nothing.",
    "Probabilities are rounded to steps of 1/65536, for rescale: inverse_probability too.",
]
IN_MERGEKIT = [
    DRAWS,
    "Its rows lie along the second dimension, also of tensors with three or more.",
    "Ranks are exact, also in rows of more than 256 elements in bfloat16; of equal magnitudes the first is lower.",
    "Rows of one element are an error there.",
]
IN_PAPER = [
    "It rescales each element by 1 / q_k, which takes one pass instead of two.",
    "Its epsilon is the whole width of the window, so twice this one.",
]


@method(
    "della",
    base=Base.REFERENCE,
    parameters=[WEIGHT, DENSITY, EPSILON, normalize_option(True), RESCALE, *ELECTED],
    check=_check_della,
    passes=_passes,
    formula=DROPPED + ELECTION,
    paper=PAPER,
    notes=NOTES,
    differences={"mergekit": [*IN_MERGEKIT, NO_NEGATIVE], "the paper": IN_PAPER},
    presets={"mergekit": {}, "paper": {"rescale": "inverse_probability"}},
)
def della(tensor: TensorInfo, p: Mapping[str, Any]) -> Steps:
    """Drops the smaller elements of each row more likely, then elects a sign per element as in TIES."""
    return (yield from _della(tensor, p, elect=True))


@method(
    "della_linear",
    base=Base.REFERENCE,
    parameters=[WEIGHT, DENSITY, EPSILON, normalize_option(False), RESCALE, divisor_option(), LAMBDA, INT8_MASK],
    check=_check_density,
    passes=_passes,
    formula=DROPPED + SUMMED,
    paper=PAPER,
    notes=NOTES,
    differences={"mergekit": IN_MERGEKIT, "the paper": ["It elects signs, which is della.", *IN_PAPER]},
    presets={"mergekit": {}, "paper": {"rescale": "inverse_probability"}},
)
def della_linear(tensor: TensorInfo, p: Mapping[str, Any]) -> Steps:
    """Drops the smaller elements of each row more likely, adds the weighted sum of what is left to the base."""
    return (yield from _della(tensor, p, elect=False))
