"""What a merge method is: a record of its parameters, and a generator that measures, solves and combines.

    @method("ties", base=Base.REFERENCE, parameters=[WEIGHT, DENSITY], ...)
    def ties(tensor, p):
        selected = yield Select(...)          # measure: one read of the inputs; the result comes back
        ...                                   # solve: float64, on the host
        return Consensus(...)                 # combine: one read, one write

Each `yield` is one pass over the inputs, the `return` is the last. A method names no backend.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import RecipeError, close_matches
from ..ops import Combine, Measure


class Base(enum.Enum):
    """What a recipe's `base_model` is to a method."""

    REFERENCE = "required; deltas are taken from it"
    OPTIONAL = "optional; deltas are taken from it, without one the models themselves are merged"
    ENDPOINT = "required; one of the two models, the one at t = 0"
    DONOR = "optional; gives the config and tokenizer only"

    @property
    def required(self) -> bool:
        return self in (Base.REFERENCE, Base.ENDPOINT)

    @property
    def is_reference(self) -> bool:
        """Whether it is what deltas are taken from. Without one, a `relative` request means the tensors themselves."""
        return self in (Base.REFERENCE, Base.OPTIONAL)


@dataclass(frozen=True)
class Parameter:
    """One parameter of a method. `convert` turns a value from a recipe into its final form or raises ValueError."""

    name: str
    convert: Callable[[Any], Any]
    kind: str  # for people: "number in [0, 1]"
    default: Any = None
    required: bool = False
    per_model: bool = False
    interpolates: bool = False
    help: str = ""


def number(
    name: str, *, low: float | None = None, high: float | None = None, optional: bool = False, **more: Any
) -> Parameter:
    """A float; lists of it are gradients."""
    if low is not None and high is not None:
        kind = f"number in [{low:g}, {high:g}]"
    else:
        kind = "number" if low is None else f"number >= {low:g}"

    def convert(value: Any) -> float | None:
        if value is None and optional:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"expected a {kind}, got {value!r}")
        try:
            value = float(value)
        except OverflowError:
            raise ValueError("expected a finite number") from None
        if not abs(value) < float("inf"):
            raise ValueError(f"expected a finite number, got {value!r}")
        if (low is not None and value < low) or (high is not None and value > high):
            raise ValueError(f"expected a {kind}, got {value!r}")
        return value

    return Parameter(name, convert, kind, interpolates=True, **more)


def integer(name: str, *, low: int, optional: bool = False, **more: Any) -> Parameter:
    """A whole number; lists of it advance in steps."""
    kind = f"integer >= {low}"

    def convert(value: Any) -> int | None:
        if value is None and optional:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value < 10**9:
            raise ValueError(f"expected an {kind}, got {value!r}")
        return value

    return Parameter(name, convert, kind, **more)


def boolean(name: str, **more: Any) -> Parameter:
    def convert(value: Any) -> bool:
        if isinstance(value, bool):
            return value
        if value in (0, 1):
            return bool(value)
        raise ValueError(f"expected true or false, got {value!r}")

    return Parameter(name, convert, "true or false", **more)


def choice(name: str, values: list[str], *, aliases: Mapping[Any, str] | None = None, **more: Any) -> Parameter:
    """One of `values`; `aliases` are other spellings, such as true and false."""
    aliases = dict(aliases or {})

    def convert(value: Any) -> str:
        for alias, meant in aliases.items():
            if type(value) is type(alias) and value == alias:
                return meant
        if value in values:
            return value
        raise ValueError(f"expected one of {', '.join(values)}, got {value!r}{close_matches(value, values)}")

    return Parameter(name, convert, " | ".join(values), **more)


NONFINITE = choice(
    "nonfinite",
    ["error", "propagate", "base"],
    default="error",
    help="what a NaN or infinity in a weight does: stop the merge, pass through, or count as unchanged",
)


@dataclass(frozen=True)
class TensorInfo:
    """What a method may know of the tensor it merges."""

    name: str
    count: int  # number of elements
    models: int  # number of inputs, a reference base not counted
    seed: int = 0

    def __str__(self) -> str:
        return f"tensor '{self.name}'" if self.name else "the tensor"


Steps = Generator[Measure, Any, Combine]


@dataclass(frozen=True)
class Method:
    name: str
    summary: str
    base: Base
    parameters: tuple[Parameter, ...]
    steps: Callable[[TensorInfo, Mapping[str, Any]], Steps]
    passes: Callable[[Mapping[str, Any]], int]  # reads of the inputs for these values
    models: tuple[int, int | None] = (1, None)  # least and most inputs, a reference base not counted
    check: Callable[[Mapping[str, Any], int], None] = lambda values, models: None
    paper: str = ""
    notes: str = ""
    by_name: Mapping[str, Parameter] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_name", {p.name: p for p in self.parameters})

    def check_values(self, values: Mapping[str, Any], models: int, *, relative: bool) -> None:
        """Raises RecipeError if values that are valid each do not go together, or not with so many models.

        relative: whether deltas are taken from a base.
        """
        if values["nonfinite"] == "base" and not relative:
            raise RecipeError(
                f"method '{self.name}' has no base to take the place of values that are not finite; "
                "set nonfinite to 'error' or 'propagate'."
            )
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


def total(weights: Sequence[float]) -> float:
    """Their sum, exactly rounded: the same in every version of Python."""
    try:
        return math.fsum(weights)
    except OverflowError:
        return math.inf


def check_sum(method: str, weights: Sequence[float], instead: str) -> None:
    """Raises RecipeError if the weights cannot be divided by their sum."""
    if not 0 < abs(total(weights)) < math.inf:
        raise RecipeError(
            f"method '{method}': the weights sum to zero or overflow, so they cannot be normalized; {instead}."
        )


REGISTRY: dict[str, Method] = {}


def method(
    name: str,
    *,
    parameters: list[Parameter],
    passes: Callable[[Mapping[str, Any]], int] | int = 1,
    **more: Any,
) -> Callable:
    """Registers a generator function as a merge method. See this module's text."""

    def register(steps: Callable[[TensorInfo, Mapping[str, Any]], Steps]) -> Callable:
        count = passes if callable(passes) else lambda values: passes
        summary = (steps.__doc__ or "").strip().splitlines()[0]
        REGISTRY[name] = Method(name, summary, parameters=(*parameters, NONFINITE), steps=steps, passes=count, **more)
        return steps

    return register


def find(name: object) -> Method:
    if name not in REGISTRY:
        raise RecipeError(
            f"unknown merge method {name!r}{close_matches(str(name), REGISTRY) or '.'} "
            f"Known: {', '.join(sorted(REGISTRY))}."
        )
    return REGISTRY[str(name)]
