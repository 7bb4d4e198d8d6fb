"""One parameter's value in a recipe: a scalar, a gradient over the layers, or values chosen by tensor name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import UsageError, close_matches, shown
from ..methods import Parameter


@dataclass(frozen=True)
class Constant:
    """One value for all tensors."""

    value: Any

    constant = True

    def at(self, tensor: str, t: float) -> Any:
        return self.value


@dataclass(frozen=True)
class Gradient:
    """Values over the layers, t in [0, 1]. Numbers are interpolated linearly; other values advance in steps."""

    values: tuple[Any, ...]
    interpolates: bool

    constant = False

    def at(self, tensor: str, t: float) -> Any:
        place = t * (len(self.values) - 1)
        first = int(place)
        share = place - first
        if not self.interpolates or not share:  # no share of an infinite value is not a number
            return self.values[first]
        return (1 - share) * self.values[first] + share * self.values[first + 1]


@dataclass(frozen=True)
class ByName:
    """The value of the first entry whose filter is part of the tensor's name.

    None if no filter matches: the next source is asked.
    """

    entries: tuple[tuple[str | None, Constant | Gradient], ...]

    constant = False

    def at(self, tensor: str, t: float) -> Any:
        for pattern, setting in self.entries:
            if pattern is None or pattern in tensor:
                return setting.at(tensor, t)
        return None


Setting = Constant | Gradient | ByName


def parse_setting(value: Any, parameter: Parameter, where: str) -> Setting:
    """Checks a recipe's value for `parameter`: a scalar, a gradient or a list of filters. Raises UsageError."""
    if isinstance(value, Mapping):
        value = [value]
    if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        return ByName(tuple(_entry(item, parameter, where) for item in value))
    return _unfiltered(value, parameter, where)


def _unfiltered(value: Any, parameter: Parameter, where: str) -> Constant | Gradient:
    if not isinstance(value, list):
        return Constant(_scalar(value, parameter, where))
    if not value:
        raise UsageError(f"{where}: '{parameter.name}' is an empty list; write a value or a list of values.")
    values = tuple(_scalar(v, parameter, where) for v in value)
    if None in values:
        raise UsageError(f"{where}: '{parameter.name}': a gradient needs a value at each of its points, got null.")
    return Gradient(values, parameter.interpolates)


def _entry(item: Any, parameter: Parameter, where: str) -> tuple[str | None, Constant | Gradient]:
    here = f"{where}: '{parameter.name}'"
    if not isinstance(item, Mapping):  # a bare value in the list is its default
        return None, _unfiltered(item, parameter, where)
    for key in item:
        if key not in ("filter", "value"):
            raise UsageError(f"{here}: unknown key {shown(key)}{close_matches(key, ['filter', 'value']) or '.'}")
    if "value" not in item:
        raise UsageError(f"{here}: an entry with a filter needs a 'value'.")
    pattern = item.get("filter")
    if pattern is not None and not isinstance(pattern, str):
        raise UsageError(f"{here}: a filter must be a part of tensor names, got {shown(pattern)}.")
    return None if pattern in (None, "*") else pattern, _unfiltered(item["value"], parameter, where)


def _scalar(value: Any, parameter: Parameter, where: str) -> Any:
    try:
        if isinstance(value, (list, Mapping)):
            raise ValueError(f"expected a {parameter.kind}, got {shown(value)}")
        return parameter.convert(value)
    except (ValueError, OverflowError) as error:
        raise UsageError(f"{where}: '{parameter.name}': {error}.") from None
