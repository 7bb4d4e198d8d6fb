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
    """A method with parameters. `models`: how many it merges. `base`: whether deltas are taken from one.

    Of a parameter that is a tuple as many values are taken as there are models; a function makes one for so many.
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
        """The largest number of models that is not above 3, or the least."""
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

# Share of the largest operand that an element may be off, where that is not oracles.TOLERANCES: angles come from
# float32 sums, rows' factors and the L1 norms that are restored from float32 terms.
SPHERICAL = ("slerp", "nuslerp", "multislerp", "karcher")
SHARES = dict.fromkeys(SPHERICAL, oracles.SPHERICAL) | dict.fromkeys(("della", "della_linear"), 3e-7)
# In float64: coefficients from several steps.
SOLVED = {*SHARES, "model_stock", "geometric_median", "norm_clipped_mean", "arcee_fusion", "pcb", "widen"} - {"slerp"}
ROUNDED = 1e-13


def check_elements(case: Case, tensors: Tensors, base: torch.Tensor, unsure: float, share: float | None = None) -> None:
    """Each element is right to rounding, but for a share that rounding may put on either side of a bound."""
    got = case.merged(tensors, base)
    fp64 = ROUNDED if case.method in SOLVED else SHARES.get(case.method)
    share = share or (fp64 if got.dtype == torch.float64 else SHARES.get(case.method))
    share = 3e-7 if case.name.startswith("model_stock-rows") and not share else share
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
    """As a matrix. Measured: at most 3e-8, of knots, whose parts are held in float32, and 2e-9, of tsv where the
    vectors of the models are nearly dependent."""
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
    return family(dtype, models, shape, sigma=0.02)


class Family(NamedTuple):
    """Methods that see the same of a tensor. `shapes`: those beside `shape` that it tells apart. `unsure`: the share of
    elements that may be so near to a threshold, or a vote to zero, that rounding turns them."""

    rows: dict[str, Case]
    makers: tuple[Callable[..., Any], ...] = (family,)
    shape: tuple[int, ...] = SHAPE
    shapes: tuple[tuple[int, ...], ...] = ()
    unsure: float = 0.0
    check: Callable[..., None] = check_elements
