"""What is compared: methods, parameters, shapes, and what comes out where the two sides are known to differ."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from . import reasons
from .data import Shape

EMPTY: tuple[Shape, ...] = ((0, 3),)
SCALAR: tuple[Shape, ...] = ((),)
VECTORS: tuple[Shape, ...] = ((1,), (7,), (129,))
MATRICES: tuple[Shape, ...] = ((1, 64), (33, 47), (96, 257))
COLUMNS: tuple[Shape, ...] = ((64, 1),)
CUBES: tuple[Shape, ...] = ((4, 5, 6), (1, 8, 8))
LARGE: tuple[Shape, ...] = ((1100, 1000),)
TRUNCATED: tuple[Shape, ...] = ((100,),)  # 0.57 * 100 and 0.29 * 100 are a little less than 57 and 29 in float64
SHAPES = SCALAR + VECTORS + MATRICES + COLUMNS + CUBES + EMPTY
NOT_EMPTY = SHAPES[: -len(EMPTY)]
SINGLE: tuple[Shape, ...] = ((), (1,))
ONES: tuple[Shape, ...] = ((), (1,), (64, 1))  # rows of one element

V = (0.5, 0.3, 0.2)
U = (0.5, 0.3, 0.25)  # no sum or difference of these is 0
W = (0.5, 0.25, 0.75)  # exact in float32, and so are their sums


@dataclass(frozen=True)
class Case:
    """One set of parameters on one kind of data. `parameters` are the peer's, `ours` those of warpmerge where they are
    not the same. `outcome`: what is known to come out, and `reason`: why."""

    method: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    data: str = "random"
    models: int = 3
    base: bool = True
    shapes: tuple[Shape, ...] = SHAPES
    outcome: str = "agrees"
    reason: str = ""
    peer: str = "mergekit"
    ours: Mapping[str, Any] | None = None
    ours_method: str = ""

    def but(self, **changes: Any) -> Case:
        return dataclasses.replace(self, **changes)

    def differs(self, reason: str, outcome: str = "differs") -> Case:
        return self.but(outcome=outcome, reason=reason)

    def but_for(self, shapes: tuple[Shape, ...], reason: str, outcome: str = "differs") -> list[Case]:
        """Two cases: what is known to come out otherwise does so for these shapes only."""
        rest = tuple(s for s in self.shapes if s not in shapes)
        return [self.but(shapes=rest), self.but(shapes=shapes).differs(reason, outcome)]


def linear() -> list[Case]:
    case = Case("linear", {"weight": V}, base=False)
    return [
        case,
        case.but(parameters={"weight": V, "normalize": False}),
        case.but(parameters={"weight": (1.0, -0.25)}, models=2),
        case.but(parameters={"weight": (0.7,)}, models=1),
        case.but(parameters={"weight": (1.0, -1.0)}, models=2).differs(reasons.ZERO_SUM, "warpmerge refuses"),
        Case("passthrough", base=False, models=1),
        Case("passthrough", {"scale": (0.7,)}, base=False, models=1),
    ]


def spherical() -> list[Case]:
    slerp = Case("slerp", {"t": 0.3}, models=1)
    nuslerp = Case("nuslerp", {"weight": (0.6, 0.4)}, models=2)
    vectors = nuslerp.but(parameters={"weight": (0.6, 0.4), "nuslerp_flatten": False})
    columns = nuslerp.but(parameters={"weight": (0.6, 0.4), "nuslerp_flatten": False, "nuslerp_row_wise": True})
    made = [
        slerp,
        *(slerp.but(data=data) for data in ("wide", "identical", "frozen", "opposite")),
        *(slerp.but(parameters={"t": t}, data="wide") for t in (0.0, 1.0, 1.5)),
        slerp.but(data="wide", shapes=LARGE),
        nuslerp.but(shapes=LARGE),
        *(nuslerp.but(base=base, data=data) for base in (True, False) for data in ("random", "wide")),
        nuslerp.but(data="frozen"),
        nuslerp.but(data="opposite").differs(reasons.OPPOSITE),
    ]
    for by in (vectors, columns):
        made += [by, by.but(base=False), by.but(base=False, data="wide"), by.but(data="frozen")]
        made.append(by.but(data="opposite").differs(reasons.OPPOSITE))
    return made


def means() -> list[Case]:
    """Spherical means of any number of models."""
    multislerp, karcher = Case("multislerp", {"weight": U}), Case("karcher", base=False)
    spread = multislerp.but(shapes=NOT_EMPTY)
    return [
        *(spread.but(base=base, data=data) for base in (True, False) for data in ("random", "wide")),
        spread.but(parameters={"weight": U, "normalize_weights": False}),
        spread.but(parameters={"weight": U, "eps": 1e-3}).differs(reasons.STEP),
        multislerp.but(shapes=EMPTY).differs(reasons.NOTHING, "peer refuses"),
        multislerp.but(parameters={"weight": (0.7,)}, models=1),
        multislerp.but(parameters={"weight": (0.6, 0.4)}, models=2, data="opposite"),
        multislerp.but(parameters={"weight": V}, shapes=SCALAR).differs(reasons.CANCEL),
        multislerp.but(data="frozen").differs(reasons.UNCHANGED, "peer refuses"),
        spread.but(data="identical"),
        spread.but(shapes=LARGE).differs(reasons.LONG_SUMS),
        *(karcher.but(data=data) for data in ("random", "wide", "identical")),
        karcher.but(data="wide", shapes=LARGE).differs(reasons.LONG_SUMS),
        karcher.but(models=2, data="wide"),
        karcher.but(parameters={"max_iter": 1}, data="wide"),
        karcher.but(parameters={"tol": 0.05}, data="wide"),
        karcher.but(models=2, data="opposite").differs(reasons.OPPOSITE_MEAN),
    ]


def model_stock() -> list[Case]:
    case = Case("model_stock")
    rows = case.but(parameters={"filter_wise": True})
    return [
        *(case.but(data=data) for data in ("random", "wide", "identical", "frozen")),
        case.but(shapes=LARGE),
        case.but(models=2),
        case.but(models=2, data="opposite"),
        case.but(data="small").differs(reasons.SMALL_NORMS),
        rows,
        rows.but(data="frozen"),
        rows.but(data="wide"),
        *rows.but(data="identical").but_for(COLUMNS, reasons.SMALL_NORMS),
        rows.but(data="small").differs(reasons.SMALL_NORMS),
    ]


SPARSIFIERS = ("ties", "dare_linear", "dare_ties", "breadcrumbs", "breadcrumbs_ties", "della", "della_linear")


def sparsified() -> list[Case]:
    plain = Case("task_arithmetic", {"weight": V})
    made = [
        plain,
        plain.but(parameters={"weight": V, "normalize": True}),
        plain.but(parameters={"weight": V, "lambda": 0.7}),
        plain.but(parameters={"weight": (0.7,)}, models=1),
        plain.but(parameters={"weight": (1.0, -0.5, 0.25)}),
        plain.but(data="frozen"),
    ]
    for method in SPARSIFIERS:
        case = Case(method, {"weight": W}, data="exact")
        made += [
            case,
            case.but(parameters={"weight": W, "normalize": method not in ("ties", "della")}),
            case.but(parameters={"weight": W, "lambda": 0.7}),
            case.but(parameters={"weight": W, "density": 0.0}),
            case.but(parameters={"weight": (0.5,)}, models=1),
            case.but(data="frozen"),
            case.but(data="sparse"),
        ]
    return made


def trimmed() -> list[Case]:
    made = []
    for density in (0.5, (0.2, 0.5, 0.9)):
        case = Case("ties", {"weight": W, "density": density}, data="exact")
        made += [case, case.but(data="sparse"), case.but(parameters={**case.parameters, "rescale": True})]
    made += [
        Case(method, {"weight": W, "density": 0.57} | more, "exact", shapes=(*TRUNCATED, *LARGE))
        for method, more in (("ties", {}), ("breadcrumbs", {"gamma": 0.29}), ("breadcrumbs_ties", {"gamma": 0.29}))
    ]
    case = Case("ties", {"weight": (1.0, -0.5, 0.25), "density": 0.5}, data="exact")
    made.append(case.differs(reasons.NEGATIVE, "warpmerge refuses"))
    made.append(case.but(parameters={**case.parameters, "normalize": False}))
    for method in ("breadcrumbs", "breadcrumbs_ties"):
        for density, gamma in ((0.9, 0.01), (0.5, 0.1), (0.95, 0.2), (0.5, 0.0)):
            case = Case(method, {"weight": W, "density": density, "gamma": gamma}, data="exact")
            made += case.but_for(SINGLE, reasons.NO_ELEMENT)
        made += case.but(parameters={**case.parameters, "rescale": True}).but_for(SINGLE, reasons.NO_ELEMENT)
    for method in ("della", "della_linear"):
        case = Case(method, {"weight": W, "density": 0.5, "epsilon": 0.1}, data="exact", shapes=ONES)
        made.append(case.differs(reasons.ONE_COLUMN, "peer refuses"))
        made.append(case.but(parameters={"weight": W, "density": 0.9, "epsilon": 0.15}, shapes=SHAPES))
    return made


def others() -> list[Case]:
    sce, near = Case("sce", data="exact"), Case("nearswap", {"t": 0.01}, models=1)
    tenth = sce.but(parameters={"select_topk": 0.1})
    return [
        sce,
        sce.but(models=1),
        sce.but(data="sparse"),
        sce.but(parameters={"select_topk": 0.0}),
        sce.but(parameters={"select_topk": 0.57}, shapes=TRUNCATED).differs(reasons.TRUNCATED),
        sce.but(parameters={"select_topk": 0.5}, shapes=LARGE),
        *sce.but(parameters={"select_topk": 0.5}).but_for(SINGLE, reasons.NONE_SELECTED),
        *tenth.but_for((*SINGLE, (7,)), reasons.NONE_SELECTED),
        *(sce.but(parameters={"select_topk": 0.5}, data=data) for data in ("identical", "frozen")),
        sce.but(data="small").differs(reasons.SMALL_ENERGIES),
        sce.but(data="small", ours={"uniform_below": 1e-6}),
        near,
        *(near.but(parameters={"t": t}) for t in (0.0, 1e-5, 10.0)),
        near.but(parameters={"t": 1e-7}).differs(reasons.FLOOR),
        near.but(parameters={"t": -0.1}).differs(reasons.NEGATIVE_T, "warpmerge refuses"),
        near.but(data="frozen"),
    ]


def masked() -> list[Case]:
    fusion, ram, plus = Case("arcee_fusion", models=1), Case("ram", data="sparse"), Case("ramplus_tl", data="sparse")
    given = fusion.but(shapes=NOT_EMPTY)
    return [
        given.differs(reasons.DIVERGENCE),
        given.but(data="wide"),
        given.but(data="frozen"),
        fusion.but(shapes=EMPTY).differs(reasons.NO_QUARTILES, "peer refuses"),
        fusion.but(shapes=LARGE).differs(reasons.SAMPLED),
        ram,
        ram.but(parameters={"epsilon": 5e-3}, data="exact"),
        ram.but(data="frozen"),
        plus.differs(reasons.FACTOR),
        plus.but(parameters={"r": 0.5, "alpha": 1.0}).differs(reasons.FACTOR),
        plus.but(parameters={"epsilon": 5e-3}, data="exact").differs(reasons.FACTOR),
        plus.but(data="frozen"),
    ]


def peft() -> list[Case]:
    """On deltas; `magnitude_prune` is breadcrumbs that drop none of the largest."""
    case = Case("task_arithmetic", {"weight": W}, "exact", peer="PEFT")
    made = [case]
    for method, ours, more in (
        ("magnitude_prune", "breadcrumbs", {"gamma": 0.0}),
        ("ties", "ties", {"semantics": "peft"}),
        ("dare_linear", "dare_linear", {"semantics": "peft"}),
        ("dare_ties", "dare_ties", {"semantics": "peft"}),
    ):
        for density in (1.0,) if method.startswith("dare") else (1.0, 0.5, 0.2):
            given = {"weight": W, "density": density}
            this = case.but(method=method, parameters=given, ours={**given, **more}, ours_method=ours)
            made += [this] if density == 1 else this.but_for(SINGLE, reasons.NONE_KEPT)
    return made


CASES = (
    *(*linear(), *spherical(), *means(), *model_stock()),
    *(*sparsified(), *trimmed(), *others(), *masked(), *peft()),
)
