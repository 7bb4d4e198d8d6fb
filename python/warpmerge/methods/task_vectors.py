"""Task arithmetic and elect-and-sum: deltas from a base are masked, rescaled, voted on and summed.

A task vector is what fine-tuning changed: d_k = x_k - x_0. Task arithmetic adds a weighted sum of them to the base.
If two models change an element in opposite directions, their sum loses both changes. The methods here work against
that in two steps. First a mask makes each delta sparse: `ties` keeps the elements of largest magnitude, `dare` drops
elements at random and scales up the rest. Then the models vote on the sign of each element, and only the deltas of
that sign are added.

A threshold and an L1 norm are statistics of the whole tensor, so each costs one more read of the inputs. Random masks
need no statistics: the draw of an element follows from seed, tensor name, model and index. expr/library.py defines
elect-and-sum as an expression; a backend may have a kernel for it (requests.ElectAndSum).

The defaults are mergekit's. Options select the meaning of a paper, and `semantics` sets them together.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..errors import UsageError
from ..expr.expression import add_up, delta, masked
from ..expr.patterns import KeptMagnitudes
from ..random import stream_key
from ..requests import (
    KEEP_ALL,
    KEEP_NONE,
    Combine,
    ElectAndSum,
    KthLargest,
    Mask,
    RandomMask,
    Reduce,
    WeightedSum,
)
from .base import Base, Steps, TensorInfo, total
from .parameters import Parameter, boolean, choice, number, scope
from .registry import method

WEIGHT = number("weight", required=True, per_model=True, help="coefficient of the model's delta")
DENSITY = number("density", low=0, high=1, default=1.0, per_model=True, help="share of the delta's elements to keep")
LAMBDA = number("lambda", default=1.0, help="factor of the merged delta")
INT8_MASK = boolean("int8_mask", default=False, help="accepted for mergekit's recipes; has no effect")
ELECT = choice(
    "elect",
    ["weighted", "unweighted"],
    default="weighted",
    help="a vote is the masked delta times the weight (mergekit), or the masked delta alone (paper, PEFT)",
)
TIES = choice(
    "ties",
    ["lowest_index", "keep_all"],
    default="lowest_index",
    help="which ties to keep: the first ones, so that the count is exact, or all",
)
CANCELLED = choice(
    "cancelled",
    ["plus", "majority"],
    default="plus",
    help="the elected sign if votes sum to 0: plus (mergekit, PEFT), or that of most elements (the paper's authors)",
)
ZERO_SUM = 1e-8  # without an election, a smaller sum of weights counts as 1 (mergekit)
ZERO_L1 = 1e-7  # a delta whose L1 norm is smaller is not rescaled (mergekit)


def normalize_option(default: bool) -> Parameter:
    about = "true is short for divisor: weights, false for divisor: none"
    return boolean("normalize", default=default, help=about, short_for="divisor")


def divisor_option() -> Parameter:
    return choice(
        "divisor",
        ["weights", "count", "none"],
        default=None,
        aliases={None: None},
        help="divide by the sum of agreeing weights, by their number (paper, PEFT), or by 1; default: see normalize",
    )


def rescale_option(default: str) -> Parameter:
    return choice(
        "rescale",
        ["l1", "inverse_density", "false"],
        default=default,
        aliases={True: "l1", False: "false"},
        help="scale up so that a delta keeps its L1 norm (true, l1: mergekit), divide by density (paper), or neither",
    )


def divisor_of(p: Mapping[str, Any]) -> str:
    return p["divisor"] or ("weights" if p["normalize"] else "none")


def kept_count(density: float, count: int) -> int:
    """How many of `count` elements a density keeps: the truncated float64 product, at least 1 if density > 0."""
    return max(1, int(density * count)) if density > 0 else 0


def is_sparse(p: Mapping[str, Any]) -> bool:
    return any(0 < d < 1 for d in p["density"])


def trim(tensor: TensorInfo, p: Mapping[str, Any]) -> Generator[KthLargest, Any, tuple[Mask, ...]]:
    """A top-k mask for each delta."""
    whole = [KEEP_ALL if density > 0 else KEEP_NONE for density in p["density"]]
    counts = [kept_count(density, tensor.count) for density in p["density"]]
    asked = tuple([count if count < tensor.count else 0 for count in counts])
    if not any(asked):
        return tuple(whole)
    selected = yield KthLargest(asked, keep_all_ties=p["ties"] == "keep_all")
    return tuple([s.keep() if count else rule for s, count, rule in zip(selected, asked, whole, strict=True)])


def drop_at_random(tensor: TensorInfo, p: Mapping[str, Any]) -> tuple[Mask, ...]:
    """A random mask for each delta. Its probability is the density, rounded to a multiple of 1/65536."""
    keep: list[Mask] = []
    for ordinal, density in enumerate(p["density"]):
        if density >= 1:
            keep.append(KEEP_ALL)
        elif density <= 0:
            keep.append(KEEP_NONE)
        else:
            cut = min(65535, max(1, round(density * 65536)))
            keep.append(RandomMask(stream_key(tensor.seed, tensor.stream, ordinal), cut))
    return tuple(keep)


def rescaling(p: Mapping[str, Any], keep: tuple[Mask, ...]) -> Generator[Reduce, Any, list[float]]:
    """One factor for each model: it makes up for the elements that its mask dropped."""
    if p["rescale"] == "false" or not is_sparse(p):
        return [1.0] * len(keep)
    if p["rescale"] == "inverse_density":
        # An element is kept with the probability cut / 65536, which is the density, rounded.
        kept = [k.cut / 65536 if isinstance(k, RandomMask) else d for k, d in zip(keep, p["density"], strict=True)]
        return [1.0 / d if d > 0 else 1.0 for d in kept]
    sums = yield Reduce("sum", KeptMagnitudes(keep))
    return [restored(*pair) for pair in zip(sums[::2], sums[1::2], strict=True)]


def restored(whole: float, left: float) -> float:
    """The factor that gives a masked delta the L1 norm of the whole delta."""
    return whole / left if whole >= ZERO_L1 and left >= ZERO_L1 else 1.0


def merge_kept(p: Mapping[str, Any], keep: tuple[Mask, ...], scale: list[float], *, elect: bool) -> ElectAndSum:
    """ElectAndSum of the masked, rescaled deltas. Without an election the divisor is one number, a part of lambda."""
    weights = p["weight"]
    value = tuple(w * s for w, s in zip(weights, scale, strict=True))
    divisor = divisor_of(p)
    if not elect:
        by = {"weights": total(weights), "count": float(len(weights)), "none": 1.0}[divisor]
        return ElectAndSum(value, keep, lambda_=p["lambda"] / (by if abs(by) >= ZERO_SUM else 1.0))
    share = tuple(weights) if divisor == "weights" else (1.0 if divisor == "count" else 0.0,) * len(weights)
    vote = value if p["elect"] == "weighted" else tuple(scale)
    return ElectAndSum(value, keep, vote, share, p["lambda"], elect=True)


def majority(keep: tuple[Mask, ...], vote: tuple[float, ...]) -> Generator[Reduce, Any, int]:
    """How many more elements have votes above zero than below."""
    d = [delta(k) if rule == KEEP_ALL else masked(delta(k), rule) for k, rule in enumerate(keep)]
    votes = add_up([x * v for x, v in zip(d, vote, strict=True)])
    more, fewer = yield Reduce("count", (votes > 0, votes < 0))
    return more - fewer


def refuse_negative(weights: Sequence[float], instead: str) -> None:
    """Raises UsageError if a weight is negative: w d / w is d, so the sign of w would be lost."""
    if min(weights, default=0) < 0:
        raise UsageError(
            f"'weight' is {min(weights):g}: with a negative weight and a division by the weights, the sign cancels and "
            f"the delta is added instead of subtracted; set {instead}."
        )


def check_elected(p: Mapping[str, Any], models: int) -> None:
    if divisor_of(p) == "weights":
        refuse_negative(p["weight"], "normalize: false (or divisor: count)")


ELECTED = [ELECT, divisor_option(), LAMBDA, INT8_MASK]
ELECTION = """S = sum w_k t_k,  sum t_k with elect: unweighted;  s = +1 where S >= 0, else -1
A = the models whose term of S is not 0 and has the sign s
y = x_0 + lambda sum_A w_k t_k / Z
Z = sum_A w_k (divisor: weights),  number of models in A (count),  1 (none);  a Z of 0 counts as 1"""
DROPPED = """t_k = r_k m_k d_k,  m_k = 1 with probability density_k, else 0, drawn for each element
r_k = |d_k|_1 / |m_k d_k|_1 (rescale: l1),  1 / density_k (inverse_density),  1 (false)"""
SUMMED = """y = x_0 + lambda sum w_k t_k / Z
Z = 1 (divisor: none),  sum w_k (weights; a sum near 0 counts as 1),  K (count)"""
NO_NEGATIVE = "With `divisor: weights` negative weights are an error: the sign cancels in the division."
DRAWS = (
    "mergekit draws from a global generator, so its drops depend on the order of work. warpmerge's depend on seed, "
    "tensor name, model and index only."
)
DARE_READS = "1 by default; 2 with rescale: l1 if a density is between 0 and 1"
ONCE_PER_MODULE = "PEFT merges the factors A and B of adapters, each by itself. warpmerge merges whole weights."


@method(
    "task_arithmetic",
    base=Base.REFERENCE,
    parameters=[
        WEIGHT,
        boolean("normalize", default=False, help="divide by the sum of the weights"),
        LAMBDA,
        boolean("rescale", default=False, help="accepted for mergekit's recipes; has no effect"),
        INT8_MASK,
    ],
    formula="y = x_0 + lambda sum w_k d_k / Z\nZ = 1 (normalize: false),  sum w_k (true; a sum near 0 counts as 1)",
    paper="Ilharco et al. 2022, Editing models with task arithmetic, arXiv 2212.04089",
    differences={"the paper": "The paper has one coefficient for all models: lambda."},
    presets={"mergekit": {}, "paper": {"weight": 1.0}},
)
def task_arithmetic(tensor: TensorInfo, p: Mapping[str, Any]) -> Combine:
    """Base plus the weighted sum of the deltas: x_0 + lambda sum w_i (x_i - x_0)."""
    by = total(p["weight"]) if p["normalize"] else 1.0
    factor = p["lambda"] / (by if abs(by) >= ZERO_SUM else 1.0)
    return WeightedSum(tuple(w * factor for w in p["weight"]), on_deltas=True)


@method(
    "ties",
    base=Base.REFERENCE,
    parameters=[
        WEIGHT,
        DENSITY,
        normalize_option(True),
        rescale_option("false"),
        TIES,
        *ELECTED,
        CANCELLED,
        scope("tensor", "model"),
    ],
    check=check_elected,
    reads="1; 2 if a density is between 0 and 1, 3 with rescale: l1; 1 more with cancelled: majority",
    formula="t_k = r_k d_k where |d_k| is one of the int(density_k n) largest of the tensor, else 0\n"
    "r_k = 1 (rescale: false),  |d_k|_1 / |kept d_k|_1 (l1),  1 / density_k (inverse_density)\n" + ELECTION,
    paper="Yadav et al. 2023, TIES-Merging, arXiv 2306.01708",
    notes="A density above 0 keeps at least one element.",
    differences={
        "mergekit": ["mergekit keeps any of the ties. warpmerge keeps the first ones.", NO_NEGATIVE],
        "the paper": [
            "The paper has one threshold for the whole model.",
            "The paper's votes are the deltas alone. It divides by the number of agreeing models and has no weights.",
            "The authors' code keeps all ties.",
            "If the votes sum to 0, the authors' code takes the sign of most elements of the whole task vector.",
            "The authors' code keeps one element more than int(density n). No preset does that.",
        ],
        "PEFT": [
            "PEFT's votes are the deltas alone. It divides by the number of agreeing models.",
            ONCE_PER_MODULE,
        ],
    },
    presets={
        "mergekit": {},
        "paper": {
            "weight": 1.0,
            "elect": "unweighted",
            "divisor": "count",
            "ties": "keep_all",
            "cancelled": "majority",
            "scope": "model",
        },
        "peft": {"elect": "unweighted", "divisor": "count"},
    },
)
def ties(tensor: TensorInfo, p: Mapping[str, Any]) -> Steps:
    """Keeps each delta's largest elements, elects a sign for each element, and averages the deltas of that sign."""
    keep = yield from trim(tensor, p)
    scale = yield from rescaling(p, keep)
    merged = merge_kept(p, keep, scale, elect=True)
    if p["cancelled"] == "majority":
        ahead = yield from majority(keep, merged.vote)
        if ahead <= 0:  # a sum of 0 elects plus; with negated votes that plus means minus
            merged = replace(merged, vote=tuple(-b for b in merged.vote))
    return merged


@method(
    "dare_linear",
    base=Base.REFERENCE,
    parameters=[WEIGHT, DENSITY, normalize_option(False), rescale_option("l1"), divisor_option(), LAMBDA, INT8_MASK],
    reads=DARE_READS,
    formula=DROPPED + "\n" + SUMMED,
    paper="Yu et al. 2023, Language models are Super Mario, arXiv 2311.03099",
    notes="Densities are rounded to multiples of 1/65536. rescale: inverse_density divides by the rounded density.",
    differences={
        "mergekit": DRAWS,
        "the paper": [
            "The paper rescales by 1 / density. That takes one pass instead of two.",
            "The paper has no weights.",
        ],
        "PEFT": ["PEFT rescales by 1 / density.", ONCE_PER_MODULE],
    },
    presets={
        "mergekit": {},
        "paper": {"weight": 1.0, "rescale": "inverse_density"},
        "peft": {"rescale": "inverse_density"},
    },
)
def dare_linear(tensor: TensorInfo, p: Mapping[str, Any]) -> Steps:
    """Drops elements of each delta at random, rescales the rest, and adds the weighted sum to the base."""
    keep = drop_at_random(tensor, p)
    scale = yield from rescaling(p, keep)
    return merge_kept(p, keep, scale, elect=False)


@method(
    "dare_ties",
    base=Base.REFERENCE,
    parameters=[WEIGHT, DENSITY, normalize_option(False), rescale_option("l1"), *ELECTED],
    check=check_elected,
    reads=DARE_READS,
    formula=DROPPED + "\n" + ELECTION,
    paper="Yu et al. 2023, Language models are Super Mario, arXiv 2311.03099",
    notes="Densities are rounded to multiples of 1/65536. rescale: inverse_density divides by the rounded density.",
    differences={
        "mergekit": [DRAWS, NO_NEGATIVE],
        "the paper": [
            "The paper rescales by 1 / density and elects as the TIES paper does.",
            "If the votes sum to 0, the paper takes the majority's sign. No preset does that.",
            "The authors' code also applies a top-k mask over the whole model after the drops. No preset does that.",
        ],
        "PEFT": [
            "PEFT rescales by 1 / density. Its votes are the deltas alone. It divides by the number that agree.",
            ONCE_PER_MODULE,
        ],
    },
    presets={
        "mergekit": {},
        "paper": {"weight": 1.0, "rescale": "inverse_density", "elect": "unweighted", "divisor": "count"},
        "peft": {"rescale": "inverse_density", "elect": "unweighted", "divisor": "count"},
    },
)
def dare_ties(tensor: TensorInfo, p: Mapping[str, Any]) -> Steps:
    """Like dare_linear, with an election of each element's sign as in TIES."""
    keep = drop_at_random(tensor, p)
    scale = yield from rescaling(p, keep)
    return merge_kept(p, keep, scale, elect=True)
