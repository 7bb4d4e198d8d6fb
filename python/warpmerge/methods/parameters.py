"""Parameters of merge methods: the values that each one takes, and its default."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from ..errors import UsageError, close_matches, shown

LARGEST = 1e30  # bound of numbers without bounds of their own: their products with weights must not overflow float32


@dataclass(frozen=True)
class Parameter:
    """A parameter of a method. `number`, `integer`, `boolean` and `choice` make parameters.

    Attributes:
        name: its name in recipes.
        convert: turns a value of a recipe into its final form. Raises ValueError for a wrong value.
        kind: the values that it takes, for messages: `number in [0, 1]`.
        default: its value if no source gives one.
        required: whether a missing value is an error.
        per_model: whether each model has a value of its own.
        interpolates: whether gradients interpolate between values; else they advance in steps.
        help: its meaning, for `warpmerge methods`.
        short_for: another parameter that this one stands for. If this one is given, a preset does not set the other.
    """

    name: str
    convert: Callable[[Any], Any]
    kind: str
    default: Any = None
    required: bool = False
    per_model: bool = False
    interpolates: bool = False
    help: str = ""
    short_for: str = ""


def number(
    name: str, *, low: float | None = None, high: float | None = None, optional: bool = False, **more: Any
) -> Parameter:
    """A parameter whose values are floats. A list of values is a gradient and interpolates.

    Args:
        name: name of the parameter.
        low: least value. None: -1e30.
        high: largest value; it may be infinite. None: 1e30.
        optional: whether None is a value.
        **more: `default`, `required`, `per_model`, `help` and other fields of Parameter.
    """
    least, most = -LARGEST if low is None else low, LARGEST if high is None else high
    if low is not None and high is not None and high < math.inf:
        kind = f"number in [{low:g}, {high:g}]"
    else:
        kind = "number" if low is None else f"number >= {low:g}"

    def convert(value: Any) -> float | None:
        if value is None and optional:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise ValueError(f"expected a {kind}, got {shown(value)}")
        try:
            number = float(value)
        except OverflowError:
            raise ValueError("expected a finite number") from None
        except ValueError:  # of a text
            raise ValueError(f"expected a {kind}, got {shown(value)}") from None
        if not (math.isfinite(number) or number == most):
            raise ValueError(f"expected a finite number, got {number!r}")
        if not least <= number <= most:
            bound = low if number < least else high
            size = f" of at most {LARGEST:g} in magnitude" if bound is None else ""
            raise ValueError(f"expected a {kind}{size}, got {number!r}")
        return number

    return Parameter(name, convert, kind, interpolates=True, **more)


def integer(name: str, *, low: int, optional: bool = False, **more: Any) -> Parameter:
    """A parameter whose values are integers. A list of values is a gradient and advances in steps.

    Args:
        name: name of the parameter.
        low: least value.
        optional: whether None is a value.
        **more: `default`, `required`, `per_model`, `help` and other fields of Parameter.
    """
    kind = f"integer >= {low}"

    def convert(value: Any) -> int | None:
        if value is None and optional:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value < 10**9:
            raise ValueError(f"expected an {kind}, got {shown(value)}")
        return value

    return Parameter(name, convert, kind, **more)


def boolean(name: str, **more: Any) -> Parameter:
    """A parameter whose values are True and False. It takes 0 and 1 too.

    Args:
        name: name of the parameter.
        **more: `default`, `required`, `per_model`, `help` and other fields of Parameter.
    """

    def convert(value: Any) -> bool:
        if isinstance(value, bool):
            return value
        if value in (0, 1):
            return bool(value)
        raise ValueError(f"expected true or false, got {shown(value)}")

    return Parameter(name, convert, "true or false", **more)


def choice(name: str, values: list[str], *, aliases: Mapping[Any, Any] | None = None, **more: Any) -> Parameter:
    """A parameter whose values are some strings.

    Args:
        name: name of the parameter.
        values: the strings.
        aliases: other spellings, such as True, with the string that each one means.
        **more: `default`, `required`, `per_model`, `help` and other fields of Parameter.
    """
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
    """The parameter `scope`: over what a method takes statistics. The first of the values is the default."""
    about = "; ".join(f"{value}: {SCOPES[value]}" for value in values)
    return choice("scope", list(values), default=values[0], help=f"over what statistics are taken ({about})")


NONFINITE = choice(
    "nonfinite",
    ["error", "propagate", "base"],
    default="error",
    help="what a NaN or infinity does, of a model or of a result that is too large for its dtype: stop the merge, pass "
    "through, or count as the base's element",
)


def checked_seed(seed: Any) -> int:
    """The seed as an int. Raises UsageError if it is no integer."""
    if isinstance(seed, bool) or not isinstance(seed, Integral):
        raise UsageError(f"seed must be an integer, got {shown(seed)}.")
    if int(seed).bit_length() > 64:
        raise UsageError(f"seed must be an integer of at most 64 bits, got {shown(int(seed))}.")
    return int(seed)
