"""Task arithmetic and its sparsified, sign-electing kin: deltas from a base, trimmed or dropped, voted on, summed.

A task vector is what fine-tuning changed: d_k = x_k - x_0. Task arithmetic adds a weighted sum of them to the base.
Where several models change the same element in different directions, a sum loses both changes. The methods here work
against that in two steps. First each delta is made sparse: `ties` keeps its largest elements, `dare` drops elements
at random and scales up the rest. Then the models vote on the sign of each element, and only those that agree are
added.

Trimming and rescaling need statistics of the whole tensor, so each costs one more read of the inputs. Random drops
need none: the draw of an element follows from seed, tensor name, model and element. Kernels merge the result
(requests.ElectAndSum), and expr/library.py defines it.

The defaults are mergekit's; where the papers differ, the named options reach their meaning.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..errors import RecipeError
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
DENSITY = number("density", low=0, high=1, default=1.0, per_model=True, help="share of the delta that is kept")
LAMBDA = number("lambda", default=1.0, help="factor of the merged delta")
INT8_MASK = boolean("int8_mask", default=False, help="accepted for mergekit's sake; changes nothing")
ELECT = choice(
    "elect",
    ["weighted", "unweighted"],
    default="weighted",
    help="votes are weighted deltas (mergekit) or bare ones (paper, PEFT)",
)
TIES = choice(
    "ties",
    ["lowest_index", "keep_all"],
    default="lowest_index",
    help="of equal magnitudes at the threshold keep the first, for an exact count, or all",
)
CANCELLED = choice(
    "cancelled",
    ["plus", "majority"],
    default="plus",
    help="the sign where votes cancel: plus (mergekit, PEFT), or that of most elements (the paper's authors)",
)
ZERO_SUM = 1e-8  # without an election, weights that sum to less are not divided by (mergekit)
ZERO_L1 = 1e-7  # sums of magnitudes below this are not rescaled by (mergekit)


def normalize_option(default: bool) -> Parameter:
    about = "short for divisor: weights (true) or none (false)"
    return boolean("normalize", default=default, help=about, short_for="divisor")


def divisor_option() -> Parameter:
    return choice(
        "divisor",
        ["weights", "count", "none"],
        default=None,
        aliases={None: None},
        help="divide by the sum of the agreeing weights, by their number (paper, PEFT), or not; default: see normalize",
    )


def rescale_option(default: str) -> Parameter:
    return choice(
        "rescale",
        ["l1", "inverse_density", "false"],
        default=default,
        aliases={True: "l1", False: "false"},
        help="restore the delta's L1 norm (true, l1: mergekit), divide by the density (paper), or neither",
    )


def divisor_of(p: Mapping[str, Any]) -> str:
    return p["divisor"] or ("weights" if p["normalize"] else "none")


def kept_count(density: float, count: int) -> int:
    """How many of `count` elements a density keeps: the float64 product truncated, at least 1 where density > 0."""
    return max(1, int(density * count)) if density > 0 else 0


def is_sparse(p: Mapping[str, Any]) -> bool:
    return any(0 < d < 1 for d in p["density"])


def trim(tensor: TensorInfo, p: Mapping[str, Any]) -> Generator[KthLargest, Any, tuple[Mask, ...]]:
    """Keeps the largest magnitudes of each delta, per tensor."""
    whole = [KEEP_ALL if density > 0 else KEEP_NONE for density in p["density"]]
    counts = [kept_count(density, tensor.count) for density in p["density"]]
    asked = tuple([count if count < tensor.count else 0 for count in counts])
    if not any(asked):
        return tuple(whole)
    selected = yield KthLargest(asked, keep_all_ties=p["ties"] == "keep_all")
    return tuple([s.keep() if count else rule for s, count, rule in zip(selected, asked, whole, strict=True)])


def drop_at_random(tensor: TensorInfo, p: Mapping[str, Any]) -> tuple[Mask, ...]:
    """Keeps each element with the probability `density`, in steps of 1/65536."""
    keep: list[Mask] = []
    for ordinal, density in enumerate(p["density"]):
        if density >= 1:
            keep.append(KEEP_ALL)
        elif density <= 0:
            keep.append(KEEP_NONE)
        else:
            cut = min(65535, max(1, round(density * 65536)))
            keep.append(RandomMask(stream_key(tensor.seed, tensor.name, ordinal), cut))
    return tuple(keep)


def rescaling(p: Mapping[str, Any], keep: tuple[Mask, ...]) -> Generator[Reduce, Any, list[float]]:
    """The factor that makes up for what was dropped, per model."""
    if p["rescale"] == "false" or not is_sparse(p):
        return [1.0] * len(keep)
    if p["rescale"] == "inverse_density":
        # A drawn element survives with the realised probability cut / 65536.
        kept = [k.cut / 65536 if isinstance(k, RandomMask) else d for k, d in zip(keep, p["density"], strict=True)]
        return [1.0 / d if d > 0 else 1.0 for d in kept]
    sums = yield Reduce("sum", KeptMagnitudes(keep))
    return [restored(*pair) for pair in zip(sums[::2], sums[1::2], strict=True)]


def restored(whole: float, left: float) -> float:
    """The factor that makes the sum of magnitudes that is left as large as the whole one."""
    return whole / left if whole >= ZERO_L1 and left >= ZERO_L1 else 1.0


def merge_kept(p: Mapping[str, Any], keep: tuple[Mask, ...], scale: list[float], *, elect: bool) -> ElectAndSum:
    """ElectAndSum of the kept, rescaled deltas. Without an election the divisor is one number and joins lambda."""
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
    """Raises RecipeError: a mean of a negative delta by its own negative weight is that delta."""
    if min(weights, default=0) < 0:
        raise RecipeError(
            "a negative weight under a sign election that divides by the agreeing weights would add the task vector it "
            f"should subtract; set {instead}."
        )


def check_elected(p: Mapping[str, Any], models: int) -> None:
    if divisor_of(p) == "weights":
        refuse_negative(p["weight"], "normalize: false (or divisor: count)")


ELECTED = [ELECT, divisor_option(), LAMBDA, INT8_MASK]
ELECTION = """S = sum w_k t_k,  sum t_k with elect: unweighted;  s = +1 where S >= 0, else -1
A = the models whose part of S has the sign s, zeros left out
y = x_0 + lambda sum_A w_k t_k / Z
Z = sum_A w_k (divisor: weights),  number of models in A (count),  1 (none);  a Z of 0 counts as 1"""
DROPPED = """t_k = r_k m_k d_k,  m_k = 1 with probability density_k, else 0, drawn for each element
r_k = |d_k|_1 / |m_k d_k|_1 (rescale: l1),  1 / density_k (inverse_density),  1 (false)"""
SUMMED = """y = x_0 + lambda sum w_k t_k / Z
Z = 1 (divisor: none),  sum w_k (weights; near 0 it counts as 1),  K (count)"""
NO_NEGATIVE = "With `divisor: weights` negative weights are an error: the sign cancels in the division."
DRAWS = "Drops depend on seed, tensor name, model and element only; there on a global generator and the schedule."
DARE_READS = "1 by default; 2 where a density is between 0 and 1, unless rescale is inverse_density or false"
ONCE_PER_MODULE = "It merges the factors A and B of adapters, each by itself; here whole weights are merged."


@method(
    "task_arithmetic",
    base=Base.REFERENCE,
    parameters=[
        WEIGHT,
        boolean("normalize", default=False, help="divide by the sum of the weights"),
        LAMBDA,
        boolean("rescale", default=False, help="accepted for mergekit's sake; changes nothing"),
        INT8_MASK,
    ],
    formula="y = x_0 + lambda sum w_k d_k / Z,  Z = 1,  sum w_k with normalize: true (near 0 it counts as 1)",
    paper="Ilharco et al. 2022, Editing models with task arithmetic, arXiv 2212.04089",
    differences={"the paper": "It has one coefficient for all models, which is lambda."},
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
    reads="1; 2 where a density is between 0 and 1, 3 if rescale is l1 as well; 1 more for cancelled: majority",
    formula="t_k = r_k d_k where |d_k| is one of the int(density_k n) largest of the tensor, else 0\n"
    "r_k = 1 (rescale: false),  |d_k|_1 / |kept d_k|_1 (l1),  1 / density_k (inverse_density)\n" + ELECTION,
    paper="Yadav et al. 2023, TIES-Merging, arXiv 2306.01708",
    notes="A density above 0 keeps at least one element.",
    differences={
        "mergekit": ["Of equal magnitudes at the threshold the first are kept; there any of them.", NO_NEGATIVE],
        "the paper": [
            "It trims the whole model at once.",
            "It elects on bare deltas, divides by the number of agreeing models and has no weights.",
            "Its authors' code keeps all magnitudes that equal the threshold.",
            "Where votes cancel, its authors' code takes the sign of the whole vector's majority.",
            "Its authors' code keeps one element more than int(density n). No preset does that.",
        ],
        "PEFT": [
            "It elects on bare deltas and divides by the number of agreeing models.",
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
    """Trims each delta to its largest magnitudes, elects a sign per element, averages those who agree."""
    keep = yield from trim(tensor, p)
    scale = yield from rescaling(p, keep)
    merged = merge_kept(p, keep, scale, elect=True)
    if p["cancelled"] == "majority":
        ahead = yield from majority(keep, merged.vote)
        if ahead <= 0:  # votes seen from the other side: cancelled ones count as plus there
            merged = replace(merged, vote=tuple(-b for b in merged.vote))
    return merged


@method(
    "dare_linear",
    base=Base.REFERENCE,
    parameters=[WEIGHT, DENSITY, normalize_option(False), rescale_option("l1"), divisor_option(), LAMBDA, INT8_MASK],
    reads=DARE_READS,
    formula=DROPPED + "\n" + SUMMED,
    paper="Yu et al. 2023, Language models are Super Mario, arXiv 2311.03099",
    notes="Densities are rounded to steps of 1/65536, for rescale: inverse_density too.",
    differences={
        "mergekit": DRAWS,
        "the paper": "It rescales by 1 / density, which takes one pass instead of two, and has no weights.",
        "PEFT": ["It rescales by 1 / density.", ONCE_PER_MODULE],
    },
    presets={
        "mergekit": {},
        "paper": {"weight": 1.0, "rescale": "inverse_density"},
        "peft": {"rescale": "inverse_density"},
    },
)
def dare_linear(tensor: TensorInfo, p: Mapping[str, Any]) -> Steps:
    """Drops elements of each delta at random, rescales the rest, adds the weighted sum to the base."""
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
    notes="Densities are rounded to steps of 1/65536, for rescale: inverse_density too.",
    differences={
        "mergekit": [DRAWS, NO_NEGATIVE],
        "the paper": [
            "It rescales by 1 / density, and its election is that of the TIES paper.",
            "Where votes cancel, its election takes the majority's sign. No preset does that.",
            "Its authors' code also trims what is left by magnitude, over the whole model. No preset does that.",
        ],
        "PEFT": [
            "It rescales by 1 / density, elects on bare deltas and divides by the number of agreeing models.",
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
    """Like dare_linear, with a sign election per element as in TIES."""
    keep = drop_at_random(tensor, p)
    scale = yield from rescaling(p, keep)
    return merge_kept(p, keep, scale, elect=True)
