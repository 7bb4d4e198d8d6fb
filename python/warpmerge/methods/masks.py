"""Masks of each element: a comparison of the K deltas of one element decides which of them count.

Each method asks one question of a delta. Is it small enough (nearswap)? Is it the largest (magmax)? Is it a change at
all (ram)? Do enough tasks want it (consensus_ta)? Has it the elected sign (emr)? The answer needs the K deltas of the
element and nothing else, so one read of the inputs is enough. ramplus_tl counts elements of the whole tensor first,
and emr with a task sums magnitudes, each for one factor per model.

The masks are comparisons in expressions: 1 or 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import UsageError
from ..expr.expression import Expr, add_up, delta, maximum, minimum, value, where
from ..expr.formula import Formula
from ..expr.library import deltas
from ..requests import Combine, Map, Reduce
from .base import Base, Steps, TensorInfo
from .parameters import choice, integer, number, scope
from .registry import method
from .task_vectors import LAMBDA

NOT_THERE = "mergekit does not implement this method."


# --- one model ------------------------------------------------------------------------------------------------------


@method(
    "nearswap",
    base=Base.REFERENCE,
    models=(1, 1),
    parameters=[number("t", low=0, required=True, help="largest change of an element of the base")],
    formula="y = x_0 + min(t, max(-t, d_1))",
    paper="alchemonaut 2024, the model card of QuartetAnemoi-70B-t0.0001",
    notes="An element of the model within t of the base is taken. Elsewhere the base moves by t towards the model.",
    differences={
        "mergekit": [
            "mergekit moves by the share t / max(|d_1|, 1e-6) of d_1. For t >= 1e-6 that is the same.",
            "A negative t is an error. mergekit returns the base.",
        ]
    },
    presets={"mergekit": {}},
)
def nearswap(tensor: TensorInfo, p: Mapping[str, Any]) -> Combine:
    """The base, each element moved towards the model by at most t."""
    t, minus_t = value(p["t"]), value(-p["t"])
    return Map(Formula((minimum(t, maximum(minus_t, delta(0))),)), on_deltas=True)


# --- the largest ----------------------------------------------------------------------------------------------------


def largest(d: Sequence[Expr], *, first: bool) -> Expr:
    """The delta of the largest magnitude. first: of several the first one, else the last one."""
    chosen = d[0]
    for other in d[1:]:
        wins = abs(other) > abs(chosen) if first else abs(other) >= abs(chosen)
        chosen = where(wins, other, chosen)
    return chosen


@method(
    "magmax",
    base=Base.REFERENCE,
    parameters=[
        number("lambda", default=0.5, help="factor of the merged delta"),
        choice(
            "ties",
            ["last_model", "first_model"],
            default="last_model",
            help="which of several largest magnitudes is taken",
        ),
    ],
    formula="y = x_0 + lambda d_m,  m = the model with the largest |d_m|, the last one of several (ties: last_model)",
    paper="Marczak et al. 2024, MagMax: leveraging model merging for seamless continual learning, arXiv 2407.06322",
    notes="List the models in the order in which they were trained.",
    differences={"mergekit": NOT_THERE},
)
def magmax(tensor: TensorInfo, p: Mapping[str, Any]) -> Combine:
    """Base plus, for each element, the delta of the largest magnitude."""
    chosen = largest(deltas(tensor.models), first=p["ties"] == "first_model")
    return Map(Formula((chosen * p["lambda"],)), on_deltas=True)


# --- how many changed it --------------------------------------------------------------------------------------------

EPSILON = number("epsilon", low=0, default=1e-5, help="an element counts as changed if its |delta| is above this")
CHANGED = "A_k = |d_k| > epsilon,  c = number of models in A"


class Changes:
    """Masks of the elements that each model changed by more than epsilon, and the number of those models."""

    def __init__(self, models: int, epsilon: float) -> None:
        self.deltas, bound = deltas(models), value(epsilon)
        self.by = [abs(d) > bound for d in self.deltas]
        self.count = add_up(self.by)

    def mean(self, factors: Sequence[float] = ()) -> Expr:
        """The mean delta of the models that changed an element. factors: that of model k if only model k changed it."""
        terms = [where(changed, d, 0) for changed, d in zip(self.by, self.deltas, strict=True)]
        mean = add_up(terms) / maximum(self.count, 1)
        if not factors:
            return mean
        alone = add_up([term * factor for term, factor in zip(terms, factors, strict=True)])
        return where(self.count > 1, mean, alone)

    def unique_and_shared(self) -> tuple[Expr, ...]:
        """K masks of the elements that only model k changed, then K masks of those that others changed too."""
        alone, with_others = self.count <= 1, self.count > 1
        return tuple(changed * which for which in (alone, with_others) for changed in self.by)


RAM = "Yuan et al. 2026, Behavior knowledge merge in reinforced agentic models, arXiv 2601.13572"


@method(
    "ram",
    base=Base.REFERENCE,
    parameters=[EPSILON],
    formula=CHANGED + "\ny = x_0 + sum_A d_k / max(c, 1)",
    paper=RAM,
    presets={"mergekit": {}},
)
def ram(tensor: TensorInfo, p: Mapping[str, Any]) -> Combine:
    """Base plus, for each element, the mean delta of the models that changed it."""
    return Map(Formula((Changes(tensor.models, p["epsilon"]).mean(),)), on_deltas=True)


def amplified(unique: Sequence[float], shared: Sequence[float], p: Mapping[str, Any]) -> tuple[float, ...]:
    """Factors of the elements that one model alone changed, from the numbers of unique and of shared elements."""
    of = {"unique": unique, "changed": [u + s for u, s in zip(unique, shared, strict=True)]}[p["overlap"]]
    ratio = [s / n if n > 0 else 0.0 for s, n in zip(shared, of, strict=True)]
    return tuple(1 + p["r"] * min(q, p["alpha"]) for q in ratio)


@method(
    "ramplus_tl",
    base=Base.REFERENCE,
    parameters=[
        number("r", default=0.1, help="how much to amplify the unique changes"),
        number("alpha", low=0, default=0.2, help="largest ratio of shared to unique elements that counts"),
        EPSILON,
        choice(
            "overlap",
            ["unique", "changed"],
            default="unique",
            help="the ratio is of shared elements to unique ones, or to all elements that the model changed",
        ),
        scope("tensor", "model"),
    ],
    formula=CHANGED + "\ny = x_0 + (sum_A d_k / c where c > 1,  g_k d_k of the one model in A where c = 1)\n"
    "g_k = 1 + r min(alpha, s_k / u_k);  overlap: changed has s_k / (s_k + u_k) in its place\n"
    "s_k = number of elements of A_k with c > 1,  u_k = number of those with c = 1",
    paper=RAM,
    differences={
        "the paper": [
            "The authors' code counts over the whole model, with r: 0.05 and alpha: 1 (ARM-R v2), or with overlap: "
            "changed (ARM-R).",
            "The authors' code divides by zero if a model has no unique elements.",
        ],
    },
    presets={"mergekit": {}, "authors": {"r": 0.05, "alpha": 1.0, "scope": "model"}},
)
def ramplus_tl(tensor: TensorInfo, p: Mapping[str, Any]) -> Steps:
    """Like ram, but changes of one model alone are amplified: the more it shares with others, the more."""
    models = tensor.models
    changes = Changes(models, p["epsilon"])
    counts = yield Reduce("count", changes.unique_and_shared())
    factors = amplified(counts[:models], counts[models:], p)
    return Map(Formula((changes.mean(factors if any(factor != 1 for factor in factors) else ()),)), on_deltas=True)


# --- which tasks want it --------------------------------------------------------------------------------------------


def _check_consensus(p: Mapping[str, Any], models: int) -> None:
    if p["k"] > models:
        raise UsageError(
            f"method 'consensus_ta': k is {p['k']}, but there {'is' if models == 1 else 'are'} only {models} "
            f"model{'s' * (models != 1)}, so no element would be kept; list more models or lower k."
        )


@method(
    "consensus_ta",
    base=Base.REFERENCE,
    parameters=[
        number("weight", default=1.0, per_model=True, help="coefficient of the model's delta"),
        number(
            "mask_lambda",
            low=0,
            default=0.4,
            per_model=True,
            help="strictness of a task: the larger, the fewer elements it wants",
        ),
        integer("k", low=0, default=2, help="how many tasks must want an element; 0 keeps every element"),
        LAMBDA,
    ],
    check=_check_consensus,
    formula="t = sum w_k d_k,  m_k = |w_k d_k| > mask_lambda_k |t - w_k d_k|\n"
    "y = x_0 + lambda t where at least k of the m_k hold, else x_0",
    paper="Wang et al. 2024, Localizing task information for improved model merging and compression, arXiv 2405.07813",
    differences={
        "mergekit": "mergekit does not implement this method any more.",
        "the paper": [
            "The paper has no weights. It tunes a mask_lambda of 0.2 to 0.6 for each task.",
            "The paper can compare with a TIES merge too. warpmerge compares with the sum of the deltas.",
        ],
    },
)
def consensus_ta(tensor: TensorInfo, p: Mapping[str, Any]) -> Combine:
    """Task arithmetic on the elements that enough tasks want (TALL masks)."""
    v = deltas(tensor.models)
    if any(w != 1 for w in p["weight"]):
        v = [d * w for d, w in zip(v, p["weight"], strict=True)]
    tau = add_up(v)
    masks = [abs(x) > abs(tau - x) * bound for x, bound in zip(v, p["mask_lambda"], strict=True)]
    merged = where(add_up(masks) >= p["k"], tau, 0) * p["lambda"]
    return Map(Formula((merged,)), on_deltas=True, nan_of=tau)


# --- one vector for all tasks -----------------------------------------------------------------------------------------


def _check_emr(p: Mapping[str, Any], models: int) -> None:
    if p["task"] is not None and p["task"] > models:
        raise UsageError(
            f"method 'emr': task is {p['task']}, but there {'is' if models == 1 else 'are'} only {models} "
            f"model{'s' * (models != 1)}; models are counted from 1."
        )


def _unified(models: int, task: int | None) -> Expr:
    """The largest delta of the elected sign, or 0. task: 0 too where that task's delta has another sign."""
    d = deltas(models)
    plus = add_up(d) > 0
    largest, least = d[0], d[0]
    for x in d[1:]:
        largest, least = maximum(largest, x), minimum(least, x)
    tau = where(plus, largest, least)
    if task is None:
        return tau
    mine = d[task - 1]
    return where(where(plus, mine > 0, mine < 0), tau, 0)


def rescaler(sum_of_task: float, sum_of_unified: float) -> float:
    """The factor that gives the unified delta the task's own sum of magnitudes."""
    return sum_of_task / sum_of_unified if sum_of_unified > 0 else 1.0


@method(
    "emr",
    base=Base.REFERENCE,
    parameters=[
        integer(
            "task", low=1, optional=True, help="the model to approximate, counted from 1; default: the unified model"
        ),
        choice(
            "rescaler",
            ["sums", "means"],
            default="sums",
            help="with scope: model, a quotient of sums of magnitudes, or of sums of each tensor's mean magnitude",
        ),
        scope("tensor", "model"),
    ],
    check=_check_emr,
    reads="1; 2 with a task",
    formula="""s = +1 where sum d_k > 0, else -1
t = s (the largest |d_k| of the models where d_k has the sign s; 0 if there is none)
y = x_0 + t;  with a task  y = x_0 + g t where d_task has the sign s, else x_0
g = |d_task|_1 / |t where d_task has the sign s|_1""",
    paper="Huang et al. 2024, EMR-Merging: tuning-free high-performance model merging, arXiv 2405.17461",
    notes="The unified model alone serves no task. Each task applies its mask and its rescaler to it.",
    differences={
        "mergekit": NOT_THERE,
        "the paper": [
            "The paper takes the sums of g over the whole model: scope: model.",
            "The authors' code for most models adds up the mean of each tensor instead: rescaler: means.",
        ],
    },
)
def emr(tensor: TensorInfo, p: Mapping[str, Any]) -> Steps:
    """A unified model of the largest changes of the elected sign, or an approximation of one task's model from it."""
    task, factor = p["task"], 1.0
    unified = _unified(tensor.models, task)
    if task is not None:
        means = p["scope"] == "model" and p["rescaler"] == "means"
        sums = yield Reduce("sum", (abs(delta(task - 1)), abs(unified)), per_element=means)
        factor = rescaler(*sums)
    return Map(Formula((unified * factor,)), on_deltas=True)
