"""Sparse task vectors: masks that keep the middle magnitudes, or the elements on which models differ most.

Breadcrumbs drops both ends of each delta: the smallest changes are noise, the largest are outliers. Two thresholds
mark the ends. The rest is merged as in task arithmetic or TIES. SCE compares the models with each other: it keeps the
elements on which the models differ most, weighs each model by its energy on these elements, and elects signs.

Thresholds are exact. That costs one or two reads more than a sample would. In return the same models give the same
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

GAMMA = number(
    "gamma", low=0, high=1, default=0.01, per_model=True, help="share of the elements to drop, the largest first"
)
BREADCRUMBS = "Davari and Belilovsky 2023, Model breadcrumbs, arXiv 2312.06795"


def band(density: float, gamma: float, count: int) -> tuple[int, int]:
    """How many elements are dropped as the largest, and how many there are down to the smallest that is kept.

    If both shares sum to more than 1, fewer of the largest are dropped: the density has precedence.
    """
    middle = min(kept_count(density, count), count)
    if middle == 0:
        return 0, 0
    top = min(int(gamma * count), count - middle)
    return top, top + middle


class Crumbs:
    """Two masks for each delta.

    largest: keeps the largest elements, which are to be dropped; None: there are none. rest: keeps all elements but the
    smallest; None: keeps all.
    """

    def __init__(self, largest: Sequence[Mask | None], rest: Sequence[Mask | None]) -> None:
        self.largest, self.rest = largest, rest

    def left(self) -> list[Expr]:
        """Each delta with 0 in the place of its largest and smallest elements."""
        values = []
        for k, (largest, rest) in enumerate(zip(self.largest, self.rest, strict=True)):
            # Both masks keep the first of equal magnitudes, so `rest` keeps all that `largest` keeps.
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
    """One factor for each model: it makes up for the elements that were dropped."""
    models = len(left)
    if p["rescale"] != "l1" or not is_sparse(p):
        return (yield from rescaling(p, (KEEP_ALL,) * models))
    sums = yield Reduce("sum", tuple(map(abs, (*deltas(models), *left))))
    return [restored(*pair) for pair in zip(sums[:models], sums[models:], strict=True)]


def _merge(tensor: TensorInfo, p: Mapping[str, Any], elect: bool) -> Generator[Any, Any, Map]:
    left = (yield from find_crumbs(tensor, p)).left()
    scale = yield from _rescaling(p, left)
    record = merge_kept(p, (KEEP_ALL,) * tensor.models, scale, elect=elect)
    # A dropped NaN or infinity stays dropped.
    return Map(Formula((record.merged(left),)), on_deltas=True, nan_of=None)


READS = "1 by default; 2 if a density is between 0 and 1, 3 with rescale: l1"
KEPT = """t_k = r_k d_k where |d_k| is one of the int(density_k n) magnitudes below the int(gamma_k n) largest, else 0
r_k = 1 (rescale: false),  |d_k|_1 / |kept d_k|_1 (l1),  1 / density_k (inverse_density)
"""
NOTES = [
    "If density and gamma sum to more than 1, gamma is lowered. At the default density of 1 nothing is dropped.",
    "A density above 0 keeps at least one element. Of equal magnitudes the first counts as the largest.",
    "With nonfinite: propagate, NaN and infinities count as the largest elements. gamma drops them first.",
]
LARGEST_STAY = (
    "Before version 0.1.5, mergekit dropped all elements if int(gamma n) is 0, as in tensors of under 100 elements."
)
ANY_OF_THEM = "mergekit keeps any of the ties. warpmerge keeps the first ones."
THE_PAPER = [
    "The paper names the share of the smallest elements, beta: density is 1 - beta - gamma. It has no weights.",
    "The authors' code drops elements of each row of a matrix. No option does that.",
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
    """Drops the largest and the smallest elements of each delta, and adds the weighted sum of the rest to the base."""
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
        "the paper": "The paper has no election. The election is that of TIES.",
    },
    presets={"mergekit": {}},
)
def breadcrumbs_ties(tensor: TensorInfo, p: Mapping[str, Any]) -> Steps:
    """Like breadcrumbs, with an election of each element's sign as in TIES."""
    return (yield from _merge(tensor, p, elect=True))


# --- where models differ --------------------------------------------------------------------------------------------


MOST = 256  # models: for more, the expressions would exceed the longest program
LARGEST_KEYS = {False: 0x7F7FFFFF, True: 0x7FEFFFFFFFFFFFFF}  # of what is finite in float32 and float64


def spread(d: Sequence[Expr]) -> Expr:
    """K^3 times the variance over the models. There is no division, so equal variances stay equal on coarse grids."""
    total_delta = add_up(d)
    apart = [x * len(d) - total_delta for x in d]
    return add_up([a * a for a in apart])


def _largest(fp64: bool) -> float:
    return 2.0 ** (1023 if fp64 else 127)


def _squares(selected: Sequence[Expr], fp64: bool, propagate: bool) -> list[Expr]:
    """Squares of the selected deltas. They are bounded, so that their sum shows an overflow. propagate: NaN stays."""
    bound = value(_largest(fp64))
    squares = [(x, minimum(bound, x * x)) for x in selected]
    return [square + x * 0 if propagate else square for x, square in squares]


def energy_shares(energies: Sequence[float], count: int, least: float) -> tuple[float, ...]:
    """Weights of the models from their sums of squares over `count` elements; equal weights if the sums are small."""
    whole = total(energies)
    if not whole > least * count:
        return (1 / len(energies),) * len(energies)
    return tuple(e / whole for e in energies)


@method(
    "sce",
    base=Base.REFERENCE,
    models=(1, MOST),
    parameters=[
        number("select_topk", low=0, high=1, default=1.0, help="share to keep of the elements on which models differ"),
        boolean(
            "sce_mask_merge",
            default=True,
            help="merge the selected elements (mergekit), or all with weights from the selected ones (authors' code)",
        ),
        number(
            "uniform_below",
            low=0,
            default=0.0,
            help="all models get the same weight if the sum of their mean squares is not above this",
        ),
        INT8_MASK,
    ],
    reads="2 by default; 4 with a select_topk between 0 and 1",
    formula="""v = variance of d_1 ... d_K,  n_v = number of v > 0,  m = 1 for int(select_topk n_v) largest v, else 0
e_k = mean of (m d_k)^2,  W_k = e_k / sum e_k;  W_k = 1 / K if sum e_k <= uniform_below
s = +1 where sum m d_k >= 0, else -1,  A = the models where m d_k is not 0 and has the sign s
y = x_0 + m sum_A W_k d_k / sum_A W_k;  sce_mask_merge: false takes m = 1 in s, A and y""",
    paper="Wan et al. 2024, FuseChat: knowledge fusion of chat models, arXiv 2408.07990",
    notes=[
        "A select_topk below 1 keeps only elements on which models differ. A single model gives the base.",
        "A select_topk above 0 keeps at least one element, if models differ on any.",
    ],
    differences={
        "mergekit": [
            "mergekit gives all models the same weight if the sum of mean squares is below 1e-6. Most fine-tunes are "
            "below it. uniform_below: 1e-6 does the same.",
            "mergekit divides by max(sum_A W_k, 1e-6). warpmerge divides by the sum itself.",
        ],
        "the paper": "The authors' code uses the selection for the weights only: sce_mask_merge: false.",
    },
    presets={"mergekit": {}, "authors": {"sce_mask_merge": False}},
)
def sce(tensor: TensorInfo, p: Mapping[str, Any]) -> Steps:
    """Keeps the elements on which models differ most, weighs models by their energy there, and elects signs."""
    models, d = tensor.models, deltas(tensor.models)
    everything, selected = (KEEP_ALL,) * models, d
    if p["select_topk"] < 1:
        differing = spread(d)
        chosen = masked(differing, (yield from _select(tensor, differing, p["select_topk"])))
        selected = [where(chosen, x, 0) for x in d]
    energies = yield Reduce("sum", tuple(_squares(selected, tensor.fp64, p["nonfinite"] == "propagate")))
    if not max(energies) < _largest(tensor.fp64):
        raise CheckpointError(f"{tensor} has deltas whose squares overflow, so method 'sce' cannot weigh the models.")
    weights = energy_shares(energies, tensor.count, p["uniform_below"])
    record = ElectAndSum(weights, everything, (1.0,) * models, weights, elect=True)
    if selected is d or not p["sce_mask_merge"]:
        return record
    return Map(Formula((record.merged(selected),)), on_deltas=True, nan_of=None)


def _select(tensor: TensorInfo, by: Expr, share: float) -> Generator[Any, Any, Mask]:
    """A mask that keeps the largest spreads, and all that are not finite."""
    if share > 0:
        (differing,) = yield Reduce("count", (by,))
        if differing:
            (chosen,) = yield KthLargest((kept_count(share, differing),), of=Formula((by,)))
            return chosen.keep()
    return TopKMask(LARGEST_KEYS[tensor.fp64], tie_end=0)
