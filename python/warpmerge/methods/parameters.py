"""Parameters of merge methods: the values that each one takes, and its default."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from ..errors import RecipeError, close_matches, shown

LARGEST = 1e30  # magnitude of a number without bounds of its own: its products with weights must stay in float32


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
    short_for: str = ""  # another parameter that this one sets too; giving it keeps a preset from setting that


def number(
    name: str, *, low: float | None = None, high: float | None = None, optional: bool = False, **more: Any
) -> Parameter:
    """A float; lists of it are gradients. A side without a bound ends at `LARGEST`; `high` may be infinite."""
    least, most = -LARGEST if low is None else low, LARGEST if high is None else high
    if low is not None and high is not None and high < math.inf:
        kind = f"number in [{low:g}, {high:g}]"
    else:
        kind = "number" if low is None else f"number >= {low:g}"

    def convert(value: Any) -> float | None:
        if value is None and optional:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"expected a {kind}, got {shown(value)}")
        try:
            number = float(value)
        except OverflowError:
            raise ValueError("expected a finite number") from None
        if not (math.isfinite(number) or number == most):
            raise ValueError(f"expected a finite number, got {number!r}")
        if not least <= number <= most:
            bound = low if number < least else high
            size = f" of at most {LARGEST:g} in magnitude" if bound is None else ""
            raise ValueError(f"expected a {kind}{size}, got {number!r}")
        return number

    return Parameter(name, convert, kind, interpolates=True, **more)


def integer(name: str, *, low: int, optional: bool = False, **more: Any) -> Parameter:
    """A whole number; lists of it advance in steps."""
    kind = f"integer >= {low}"

    def convert(value: Any) -> int | None:
        if value is None and optional:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value < 10**9:
            raise ValueError(f"expected an {kind}, got {shown(value)}")
        return value

    return Parameter(name, convert, kind, **more)


def boolean(name: str, **more: Any) -> Parameter:
    def convert(value: Any) -> bool:
        if isinstance(value, bool):
            return value
        if value in (0, 1):
            return bool(value)
        raise ValueError(f"expected true or false, got {shown(value)}")

    return Parameter(name, convert, "true or false", **more)


def choice(name: str, values: list[str], *, aliases: Mapping[Any, Any] | None = None, **more: Any) -> Parameter:
    """One of `values`; `aliases` are other spellings, such as true and false."""
    aliases = dict(aliases or {})

    def convert(value: Any) -> Any:
        for alias, meant in aliases.items():
            if type(value) is type(alias) and value == alias:
                return meant
        if isinstance(value, str) and value in values:
            return value
        raise ValueError(f"expected one of {', '.join(values)}, got {shown(value)}{close_matches(value, values)}")

    return Parameter(name, convert, " | ".join(values), **more)


SCOPES = {
    "tensor": "each tensor",
    "row": "each row",
    "model": "the whole model, which costs one more read of the inputs",
}


def scope(*values: str) -> Parameter:
    """Over what a method measures: some of `SCOPES`, the first of them by default."""
    about = "; ".join(f"{value}: {SCOPES[value]}" for value in values)
    return choice("scope", list(values), default=values[0], help=f"over what statistics are taken ({about})")


NONFINITE = choice(
    "nonfinite",
    ["error", "propagate", "base"],
    default="error",
    help="what a NaN or infinity in a model does: stop the merge, pass through, or count as the base's element",
)


def checked_seed(seed: Any) -> int:
    if isinstance(seed, bool) or not isinstance(seed, Integral):
        raise RecipeError(f"seed must be an integer, got {shown(seed)}.")
    return int(seed)
