"""What a row of method_table.py is: a method, its parameters, and an oracle that its results are compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import oracles
import oracles_dense as dense
import torch
import warpmerge as wm
from kernel_helpers import family

SHAPE = (61, 83)  # a block of the reduction order and a rest, no multiple of 8
ANY = (1, 2, 3, 5, 9)  # up to 4 models are unrolled in the kernels

Tensors = Sequence[torch.Tensor]


class Case(NamedTuple):
    """A method with parameters, and its oracle.

    `models`: the numbers of models to test with. `base`: whether the method gets a base. A parameter may be a tuple
    with one value per model (the first ones are taken), or a function of the number of models.
    """

    oracle: Callable[..., Any]
    models: tuple[int, ...]
    base: bool
    parameters: dict[str, Any]
    name: str = ""
    family: Any = None

    @property
    def method(self) -> str:
        return self.oracle.__name__

    @property
    def few(self) -> int:
        """A small number of models: at most 3, if the case allows it."""
        return max((k for k in self.models if k <= 3), default=self.models[0])

    def given(self, models: int) -> dict[str, Any]:
        def value(of: Any) -> Any:
            return list(of[:models]) if isinstance(of, tuple) else of(models) if callable(of) else of

        return {name: value(of) for name, of in self.parameters.items()}

    def merged(self, tensors: Tensors, base: torch.Tensor | None, **options: Any) -> torch.Tensor:
        given = {**self.given(len(tensors)), **options}
        return wm.merge_tensors(list(tensors), self.method, base=base if self.base else None, **given)

    def expected(self, tensors: Tensors, base: torch.Tensor | None) -> Any:
        return self.oracle(list(tensors), *([base] if self.base else []), **self.given(len(tensors)))


def alone(oracle: Callable[..., Any], *models: int, **parameters: Any) -> Case:
    return Case(oracle, models or ANY, False, parameters)


def on_base(oracle: Callable[..., Any], *models: int, **parameters: Any) -> Case:
    return Case(oracle, models or ANY, True, parameters)


# --- what results are compared by -----------------------------------------------------------------------------------

# How far an element may be off, as a share of the largest operand, where oracles.TOLERANCES do not suffice. By the
# start of a case's name. Angles come from float32 sums; factors of rows and restored L1 norms come from float32 terms.
SHARES = {
    **dict.fromkeys(("slerp", "nuslerp", "multislerp", "karcher"), oracles.SPHERICAL),
    **dict.fromkeys(("della", "model_stock-rows"), 3e-7),
}
# Their coefficients take several steps: in float64 each of them rounds.
SOLVED = {"nuslerp", "multislerp", "karcher", "model_stock", "geometric_median", "norm_clipped_mean"}
SOLVED |= {"della", "della_linear", "arcee_fusion", "pcb", "widen"}
ROUNDED = 1e-13


def share_of(case: Case, dtype: torch.dtype) -> float | None:
    if dtype == torch.float64 and case.method in SOLVED:
        return ROUNDED
    return next((share for start, share in SHARES.items() if case.name.startswith(start)), None)


def check_elements(case: Case, tensors: Tensors, base: torch.Tensor, unsure: float, share: float | None = None) -> None:
    """Each element equals the oracle's to rounding. `unsure`: the share of elements that rounding may put on either
    side of a bound."""
    got = case.merged(tensors, base)
    share = share or share_of(case, got.dtype)
    oracles.assert_accurate(got, case.expected(tensors, base), share=share, most_unsure=unsure)


def added(case: Case, tensors: Tensors, base: torch.Tensor) -> tuple[np.ndarray, torch.dtype]:
    """Result less base, as float64: the result is not rounded further than to the compute type."""
    kind = torch.float64 if torch.float64 in {t.dtype for t in [*tensors, base]} else torch.float32
    return dense.fp64(case.merged(tensors, base, out_dtype=kind)) - dense.fp64(base), kind


def error(
    got: np.ndarray, wanted: np.ndarray, base: torch.Tensor, kind: torch.dtype = torch.float64, least: float = 0.0
) -> float:
    """In the Frobenius norm, relative to that of `wanted` or `least`, beyond the rounding of the sum with the base."""
    rounding = torch.finfo(kind).eps / 2 * np.linalg.norm(dense.fp64(base) + wanted)
    return max(0.0, np.linalg.norm(got - wanted) - rounding) / (max(np.linalg.norm(wanted), least) or 1.0)


def check_matrix(case: Case, tensors: Tensors, base: torch.Tensor, unsure: float, share: float | None = None) -> None:
    """What is added to the base equals the oracle's as a matrix. Measured: at most 3e-8, of knots, whose parts are held
    in float32, and 2e-9, of tsv where the vectors of the models are nearly dependent."""
    got, kind = added(case, tensors, base)
    least = 1e-3 * max((float(t.norm()) for t in tensors), default=0) if share else 0.0
    assert error(got, case.expected(tensors, base), base, kind, least) < (share or 1e-7)


# --- inputs ---------------------------------------------------------------------------------------------------------


def related(dtype: str, models: int, shape: Any = SHAPE) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Fine-tunes of a base that share a direction and differ in how far they went."""
    base, tuned = family(dtype, models + 1, shape, sigma=2e-3)
    common = tuned.pop().double() - base.double()
    return base, [(t.double() + common * (k + 1) / 2).to(t.dtype) for k, t in enumerate(tuned)]


def distant(dtype: str, models: int, shape: Any = SHAPE) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Models that have nothing in common, one of them far longer."""
    base, tuned = family(dtype, models, shape, sigma=0.2)
    return base, [(t.double() * (30 if k == 1 else 1)).to(t.dtype) for k, t in enumerate(tuned)]


def far(dtype: str, models: int, shape: Any = SHAPE) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Fine-tunes that changed as much as the base is large."""
    return family(dtype, models, shape, sigma=0.02)


class Family(NamedTuple):
    """Cases that share inputs and a comparison.

    `shape`: that of most tests. `shapes`: others that the methods treat in another way. `unsure`: the share of elements
    that may be so near to a threshold, or a vote to zero, that rounding decides.
    """

    rows: dict[str, Case]
    makers: tuple[Callable[..., Any], ...] = (family,)
    shape: tuple[int, ...] = SHAPE
    shapes: tuple[tuple[int, ...], ...] = ()
    unsure: float = 0.0
    check: Callable[..., None] = check_elements
