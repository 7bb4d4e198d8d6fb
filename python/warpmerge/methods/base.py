"""What a merge method is: a record of its parameters, and a function that measures, solves and combines.

    @method("ties", base=Base.REFERENCE, parameters=[WEIGHT, DENSITY], ...)
    def ties(tensor, p):
        selected = yield KthLargest(...)      # measure: one read of the inputs; the result comes back
        ...                                   # solve: float64, on the host
        return ElectAndSum(...)               # combine: one read, one write

Each `yield` is one pass over the inputs, the `return` is the last. A method that measures nothing is a plain function.
A method names no backend.
"""

from __future__ import annotations

import enum
import functools
import inspect
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import RecipeError, close_matches
from ..requests import Combine, Measure
from .auxiliary import AuxiliaryTensor
from .parameters import LARGEST, Parameter


class Base(enum.Enum):
    """What a recipe's `base_model` is to a method."""

    REFERENCE = "required; deltas are taken from it"
    OPTIONAL = "optional; with a base, deltas are taken from it; without one, the models themselves are merged"
    ENDPOINT = "required; one of the two models, the one at t = 0"
    METADATA = "optional; gives the config and tokenizer only"

    @property
    def required(self) -> bool:
        return self in (Base.REFERENCE, Base.ENDPOINT)

    @property
    def is_reference(self) -> bool:
        """Whether it is what deltas are taken from. Without one, a `on_deltas` request means the tensors themselves."""
        return self in (Base.REFERENCE, Base.OPTIONAL)


@dataclass(frozen=True)
class TensorInfo:
    """What a method may know of the tensor it merges."""

    name: str
    count: int  # number of elements
    models: int  # number of inputs, a reference base not counted
    seed: int = 0
    shape: tuple[int, ...] | None = None  # None: one dimension
    fp64: bool = False  # computed in float64, else in float32
    auxiliary: tuple[
        tuple[int, ...], ...
    ] = ()  # shapes of the inputs behind the models' own, if it has auxiliary tensors

    @property
    def columns(self) -> int:
        """Length of a row, the last dimension; a vector is one row, and a number a row of one element."""
        return self.count if self.shape is None else self.shape[-1] if self.shape else 1

    @property
    def rows(self) -> int:
        return self.count // self.columns if self.count else 0

    def __str__(self) -> str:
        return f"tensor '{self.name}'" if self.name else "the tensor"


Steps = Generator[Measure, Any, Combine]


def usual_models(limits: tuple[int, int | None]) -> int:
    """Three, or as near as a method's least and most inputs are to it."""
    least, most = limits
    return max(least, 3 if most is None else min(most, 3))


def as_steps(function: Callable[..., Steps | Combine]) -> Callable[..., Steps]:
    """A method's function as a generator function; a plain one takes no steps before it returns."""
    if inspect.isgeneratorfunction(function):
        return function

    @functools.wraps(function)
    def steps(tensor: TensorInfo, values: Mapping[str, Any]) -> Steps:
        found = function(tensor, values)
        combine: Combine = (yield from found) if isinstance(found, Generator) else found
        return combine

    return steps


@dataclass(frozen=True)
class Method:
    """A merge method. `presets`: by name, the options that give the meaning of one implementation; the first is the
    default. `differences`: from whom, and in what. `formula` uses the notation of docs/methods.md."""

    name: str
    summary: str
    base: Base
    parameters: tuple[Parameter, ...]
    steps: Callable[[TensorInfo, Mapping[str, Any]], Steps]
    passes: Callable[[Mapping[str, Any]], int]  # reads of the inputs for these values: those of a matrix
    models: tuple[int, int | None] = (1, None)  # least and most inputs, a reference base not counted
    check: Callable[[Mapping[str, Any], int], None] = lambda values, models: None
    auxiliary: tuple[AuxiliaryTensor, ...] = ()  # what it needs of each model beside its weights
    copies: bool = False  # takes tensors as they are: integers and quantised ones too, from the model
    memory: Callable[[tuple[int, ...], int], int] | None = None  # bytes of a tensor and so many models, where not tiles
    reads_text: str = ""
    formula: str = ""
    paper: str = ""
    notes: tuple[str, ...] = ()
    differences: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    by_name: Mapping[str, Parameter] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_name", {p.name: p for p in self.parameters})

    @property
    def module(self) -> str:
        return self.steps.__module__ or "__main__"  # code that is run from text has none

    @property
    def built_in(self) -> bool:
        return self.module.startswith(f"{__package__}.")

    @property
    def reads(self) -> str:
        """`passes`, for people: its text, or the number with the defaults."""
        return self.reads_text or str(self.passes(self.defaults()))

    def defaults(self) -> dict[str, Any]:
        """Values of all parameters for the usual number of models; some number for those without a default."""
        models = usual_models(self.models)
        values = {p.name: 0.25 if p.required and p.default is None else p.default for p in self.parameters}
        return {p.name: (values[p.name],) * models if p.per_model else values[p.name] for p in self.parameters}

    def preset(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The options that `given["semantics"]` sets, but not those whose short form is given.

        The caller lets a value that is given win over one of these.
        """
        if not self.presets:
            return {}
        semantics = self.by_name["semantics"]
        chosen = given.get("semantics")
        try:
            options = self.presets[semantics.default if chosen is None else semantics.convert(chosen)]
        except ValueError as error:
            raise RecipeError(f"method '{self.name}': 'semantics': {error}.") from None
        short = {p.short_for for p in self.parameters if given.get(p.name) is not None}
        return {name: value for name, value in options.items() if name not in short}

    def check_values(self, values: Mapping[str, Any], models: int, *, on_deltas: bool) -> None:
        """Raises RecipeError if values that are valid each do not go together, or not with so many models.

        on_deltas: whether deltas are taken from a base.
        """
        if values["nonfinite"] == "base" and not on_deltas:
            raise RecipeError(
                f"method '{self.name}' has no base to take elements from in place of NaN and infinities; set nonfinite "
                "to 'error' or 'propagate'."
            )
        check_products(self.name, values)
        self.check(values, models)

    def parameter(self, name: str, where: str = "") -> Parameter:
        where = where and f"{where}: "
        if name not in self.by_name:
            known = ", ".join(sorted(self.by_name))
            raise RecipeError(
                f"{where}method '{self.name}' has no parameter '{name}'"
                f"{close_matches(name, self.by_name) or '.'} It takes: {known}."
            )
        return self.by_name[name]

    def check_models(self, count: int) -> None:
        """Raises if this many inputs (a reference base not counted) cannot be merged."""
        least, most = self.models
        if least <= count and (most is None or count <= most):
            return
        wanted = f"exactly {least}" if least == most else f"at least {least}" if most is None else f"{least}-{most}"
        besides = {Base.REFERENCE: " besides the base", Base.OPTIONAL: " (a base not counted)"}.get(self.base, "")
        raise RecipeError(
            f"method '{self.name}' merges {wanted} model{'s' if wanted[-2:] != ' 1' else ''}{besides}, got {count}."
        )


ZERO_SHARE = 1e-8  # a sum that is a smaller share of its terms' magnitudes is what their rounding left of zero


def total(weights: Sequence[float]) -> float:
    """Their sum, exactly rounded: the same in every version of Python."""
    try:
        return math.fsum(weights)
    except OverflowError:
        return math.inf


MULTIPLIED = (("weight", "lambda"), ("r", "alpha"))


def check_products(method: str, values: Mapping[str, Any]) -> None:
    """Raises RecipeError if the product of parameters that are multiplied with each other may overflow."""
    for names in MULTIPLIED:
        if not all(name in values for name in names):
            continue
        largest = []
        for name in names:
            each = values[name] if isinstance(values[name], tuple) else (values[name],)
            largest.append(max((abs(v) for v in each if isinstance(v, (int, float))), default=0.0))
        product = math.prod(largest)
        if product > LARGEST:
            first, second = names
            raise RecipeError(
                f"method '{method}': '{first}' ({largest[0]:g}) times '{second}' ({largest[1]:g}) is {product:g} and "
                f"may overflow; choose numbers whose product is at most {LARGEST:g}."
            )


def check_sum(method: str, weights: Sequence[float], instead: str) -> None:
    """Raises RecipeError if the weights cannot be divided by their sum: it overflows, or they cancel."""
    by = abs(total(weights))
    if not 0 < by < math.inf or by < ZERO_SHARE * total([abs(w) for w in weights]):
        raise RecipeError(
            f"method '{method}': the weights sum to zero or overflow, so they cannot be normalized; {instead}."
        )
