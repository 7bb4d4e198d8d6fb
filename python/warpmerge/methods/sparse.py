"""Sparse task vectors: the middle of the changes, or those that models disagree on most, are kept and merged.

Breadcrumbs drops both ends of each delta: the smallest changes are noise, the largest are outliers. Two selections
find the ends, and the rest is merged as in task arithmetic or TIES. SCE looks across the models instead of along the
tensor: it keeps the elements where the models differ most, weighs each model by its energy there, and elects signs.

Both select exactly, which costs one or two reads more than a sample would. In return the same models give the same
result on every machine.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from ..errors import CheckpointError
from ..expr.expression import Expr, add_up, delta, masked, minimum, value, where
from ..expr.formula import Formula
from ..expr.library import deltas
from ..requests import KEEP_ALL, KEEP_NONE, ElectAndSum, KthLargest, Map, Mask, Reduce, TopKMask
from .base import Base, Steps, TensorInfo, total
from .parameters import boolean, number
from .registry import method
from .task_vectors import (
    DENSITY,
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
    kept_count,
    merge_kept,
    normalize_option,
    rescale_option,
    rescaling,
    restored,
)

# --- the middle -----------------------------------------------------------------------------------------------------

GAMMA = number("gamma", low=0, high=1, default=0.01, per_model=True, help="share of the largest changes to drop")
BREADCRUMBS = "Davari and Belilovsky 2023, Model breadcrumbs, arXiv 2312.06795"


def band(density: float, gamma: float, count: int) -> tuple[int, int]:
    """How many of the largest are dropped, and how many are above those that are dropped for being small.

    What is kept has precedence: where both shares exceed the whole, fewer of the largest are dropped.
    """
    middle = min(kept_count(density, count), count)
    if middle == 0:
        return 0, 0
    top = min(int(gamma * count), count - middle)
    return top, top + middle


class Crumbs:
    """Of each delta the masks that keep its largest, which are dropped, and all but its smallest; None: drops none."""

    def __init__(self, largest: Sequence[Mask | None], rest: Sequence[Mask | None]) -> None:
        self.largest, self.rest = largest, rest

    def left(self) -> list[Expr]:
        """Each delta where its magnitude is neither among the largest nor among the smallest, else 0."""
        values = []
        for k, (largest, rest) in enumerate(zip(self.largest, self.rest, strict=True)):
            # Both masks take the first of equal magnitudes, so that what the first one keeps, the second one keeps too.
            dropped = masked(delta(k), largest) if largest is not None else None
            left = masked(delta(k), rest) if rest is not None else delta(k)
            values.append(left if dropped is None else where(dropped, 0, left))
        return values


def find_crumbs(tensor: TensorInfo, p: Mapping[str, Any]) -> Generator[KthLargest, Any, Crumbs]:
    count = tensor.count
    bands = [band(d, g, count) for d, g in zip(p["density"], p["gamma"], strict=True)]
    ends = [
        (k, n)
        for k, (top, above) in enumerate(bands)
        for n in itertools.compress((top, above), (top > 0, above < count or above == 0))
    ]
    asked = [(k, n) for k, n in ends if n > 0]
    found = iter(())
    if asked:
        models, counts = zip(*asked, strict=True)
        found = iter((yield KthLargest(counts, of=Formula(tuple(map(delta, models))))))
    masks = {(k, n): next(found).keep() if n > 0 else KEEP_NONE for k, n in ends}
    return Crumbs(
        [masks[k, top] if top > 0 else None for k, (top, _) in enumerate(bands)],
        [masks.get((k, above)) if above < count or above == 0 else None for k, (_, above) in enumerate(bands)],
    )


def _rescaling(p: Mapping[str, Any], left: Sequence[Expr]) -> Generator[Reduce, Any, list[float]]:
    """The factor that makes up for what was dropped, per model."""
    models = len(left)
    if p["rescale"] != "l1" or not is_sparse(p):
        return (yield from rescaling(p, (KEEP_ALL,) * models))
    sums = yield Reduce("sum", tuple(map(abs, (*deltas(models), *left))))
    return [restored(*pair) for pair in zip(sums[:models], sums[models:], strict=True)]


def _merge(tensor: TensorInfo, p: Mapping[str, Any], elect: bool) -> Generator[Any, Any, Map]:
    left = (yield from find_crumbs(tensor, p)).left()
    scale = yield from _rescaling(p, left)
    record = merge_kept(p, (KEEP_ALL,) * tensor.models, scale, elect=elect)
    # Dropped elements that are not finite stay dropped.
    return Map(Formula((record.merged(left),)), on_deltas=True, nan_of=None)


READS = "1 by default; 2 where a density is between 0 and 1, 3 with rescale: l1"
KEPT = """t_k = r_k d_k where |d_k| is one of the int(density_k n) magnitudes below the int(gamma_k n) largest, else 0
r_k = 1 (rescale: false),  |d_k|_1 / |kept d_k|_1 (l1),  1 / density_k (inverse_density)
"""
NOTES = [
    "Where density and gamma sum to more than 1, fewer of the largest are dropped: none at the default density of 1.",
    "A density above 0 keeps at least one element. Of equal magnitudes the first counts as the largest, as in ties.",
    "With nonfinite: propagate, what is not finite counts as the largest change, which gamma drops.",
]
LARGEST_STAY = (
    "Before version 0.1.5 it dropped everything where int(gamma n) is 0, as in tensors of under 100 elements."
)
ANY_OF_THEM = "Of equal magnitudes there any may be kept."
THE_PAPER = [
    "It drops the smallest by a share of their own, beta: density is 1 - beta - gamma. It has no weights.",
    "Its authors' code does so for each row of a matrix; there is no option for that.",
]


@method(
    "breadcrumbs",
    base=Base.REFERENCE,
    parameters=[
        WEIGHT,
        DENSITY,
        GAMMA,
        normalize_option(False),
        rescale_option("false"),
        divisor_option(),
        LAMBDA,
        INT8_MASK,
    ],
    reads=READS,
    formula=KEPT + SUMMED,
    paper=BREADCRUMBS,
    notes=NOTES,
    differences={"mergekit": [LARGEST_STAY, ANY_OF_THEM], "the paper": THE_PAPER},
    presets={"mergekit": {}, "paper": {"weight": 1.0}},
)
def breadcrumbs(tensor: TensorInfo, p: Mapping[str, Any]) -> Steps:
    """Drops the largest and the smallest changes of each delta, adds the weighted sum of the rest to the base."""
    return (yield from _merge(tensor, p, elect=False))


@method(
    "breadcrumbs_ties",
    base=Base.REFERENCE,
    parameters=[WEIGHT, DENSITY, GAMMA, normalize_option(False), rescale_option("false"), *ELECTED],
    check=check_elected,
    reads=READS,
    formula=KEPT + ELECTION,
    paper=BREADCRUMBS,
    notes=NOTES,
    differences={
        "mergekit": [LARGEST_STAY, ANY_OF_THEM, NO_NEGATIVE],
        "the paper": "It has no election; that is from TIES.",
    },
    presets={"mergekit": {}},
)
def breadcrumbs_ties(tensor: TensorInfo, p: Mapping[str, Any]) -> Steps:
    """Like breadcrumbs, with a sign election per element as in TIES."""
    return (yield from _merge(tensor, p, elect=True))


# --- where models disagree --------------------------------------------------------------------------------------------


MOST = 256  # models: selecting and merging more would be a longer formula than there may be
LARGEST_KEYS = {False: 0x7F7FFFFF, True: 0x7FEFFFFFFFFFFFFF}  # of what is finite in float32 and float64


def spread(d: Sequence[Expr]) -> Expr:
    """K^3 times the variance over the models: no quotients, so that equal variances stay equal on coarse grids."""
    total_delta = add_up(d)
    apart = [x * len(d) - total_delta for x in d]
    return add_up([a * a for a in apart])


def _largest(fp64: bool) -> float:
    return 2.0 ** (1023 if fp64 else 127)


def _squares(selected: Sequence[Expr], fp64: bool, propagate: bool) -> list[Expr]:
    """Of the selected deltas, bounded so that an overflow is seen in their sum; NaN of what is not finite."""
    bound = value(_largest(fp64))
    squares = [(x, minimum(bound, x * x)) for x in selected]
    return [square + x * 0 if propagate else square for x, square in squares]


def energy_shares(energies: Sequence[float], count: int, least: float) -> tuple[float, ...]:
    """Weights of the models from their sums of squares over `count` elements; equal ones if there is too little."""
    whole = total(energies)
    if not whole > least * count:
        return (1 / len(energies),) * len(energies)
    return tuple(e / whole for e in energies)


@method(
    "sce",
    base=Base.REFERENCE,
    models=(1, MOST),
    parameters=[
        number("select_topk", low=0, high=1, default=1.0, help="share of the elements on which models differ to keep"),
        boolean(
            "sce_mask_merge",
            default=True,
            help="merge what was selected (mergekit), or all, with weights from what was selected (the authors' code)",
        ),
        number("uniform_below", low=0, default=0.0, help="sum of mean squares up to which all models weigh the same"),
        INT8_MASK,
    ],
    reads="2 by default; 4 with a select_topk between 0 and 1",
    formula="""v = variance of d_1 ... d_K,  m = one of the int(select_topk n_v) largest v,  n_v = number of v > 0
e_k = mean of (m d_k)^2,  W_k = e_k / sum e_k,  1 / K where sum e_k <= uniform_below
s = +1 where sum m d_k >= 0, else -1,  A = the models where m d_k has the sign s
y = x_0 + m sum_A W_k d_k / sum_A W_k,  without m in s, A and y with sce_mask_merge: false""",
    paper="Wan et al. 2024, FuseChat: knowledge fusion of chat models, arXiv 2408.07990",
    notes=[
        "A select_topk below 1 keeps nothing where all models are alike, so one model alone gives the base.",
        "A select_topk above 0 keeps at least one element, if there is one on which models differ.",
    ],
    differences={
        "mergekit": [
            "All models weigh the same there where the sum of mean squares is below 1e-6, as it is for most "
            "fine-tunes: set uniform_below: 1e-6 for that.",
            "It divides by max(sum_A W_k, 1e-6); here the sum is divided by as it is.",
        ],
        "the paper": "Its authors' code selects for the weights only: sce_mask_merge: false.",
    },
    presets={"mergekit": {}, "authors": {"sce_mask_merge": False}},
)
def sce(tensor: TensorInfo, p: Mapping[str, Any]) -> Steps:
    """Selects the elements on which models differ most, weighs models by their energy there, elects signs."""
    models, d = tensor.models, deltas(tensor.models)
    everything, selected = (KEEP_ALL,) * models, d
    if p["select_topk"] < 1:
        differing = spread(d)
        chosen = masked(differing, (yield from _select(tensor, differing, p["select_topk"])))
        selected = [where(chosen, x, 0) for x in d]
    energies = yield Reduce("sum", tuple(_squares(selected, tensor.fp64, p["nonfinite"] == "propagate")))
    if not max(energies) < _largest(tensor.fp64):
        raise CheckpointError(f"{tensor} has deltas whose squares overflow; a method that measures needs them.")
    weights = energy_shares(energies, tensor.count, p["uniform_below"])
    record = ElectAndSum(weights, everything, (1.0,) * models, weights, elect=True)
    if selected is d or not p["sce_mask_merge"]:
        return record
    return Map(Formula((record.merged(selected),)), on_deltas=True, nan_of=None)


def _select(tensor: TensorInfo, by: Expr, share: float) -> Generator[Any, Any, Mask]:
    """The rule that keeps those spreads which are among the largest, or not finite."""
    if share > 0:
        (differing,) = yield Reduce("count", (by,))
        if differing:
            (chosen,) = yield KthLargest((kept_count(share, differing),), of=Formula((by,)))
            return chosen.keep()
    return TopKMask(LARGEST_KEYS[tensor.fp64], tie_end=0)
