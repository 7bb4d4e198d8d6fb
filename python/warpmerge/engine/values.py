"""The parameters of a call: plain numbers, lists, arrays or tensors become the values that a method gets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..errors import UsageError
from ..methods import Method, Parameter
from ..plain import is_tensor, plain
from ..recipe.resolve import complete_values


def resolve_values(method: Method, models: int, given: Mapping[str, Any], *, on_deltas: bool) -> dict[str, Any]:
    """The final value of each parameter, a tuple of K where it is per model. None counts as not given."""
    given = {"lambda" if name == "lambda_" else name: value for name, value in given.items()}
    for name, value in given.items():
        parameter = method.parameter(name)
        with _naming(method, name):
            given[name] = _plain(parameter, value)
    rows = {}
    for parameter in method.parameters:
        value = given.get(parameter.name)
        with _naming(method, parameter.name):
            if parameter.per_model:
                rows[parameter.name] = _per_model(parameter, value, models)
            else:
                rows[parameter.name] = (None if value is None else parameter.convert(value),)
    return complete_values(
        method,
        rows,
        models,
        on_deltas=on_deltas,
        missing=lambda parameter, _: UsageError(f"method '{method.name}' needs the parameter '{parameter.name}'."),
    )


def _per_model(parameter: Parameter, value: Any, models: int) -> tuple:
    if value is None:
        return (None,) * models
    listed = [_plain(parameter, v) for v in value] if isinstance(value, (list, tuple)) else [value] * models
    if len(listed) != models:
        raise ValueError(f"expected one value per model ({models}), got {len(listed)}")
    if any(v is None for v in listed):
        raise ValueError(f"expected a {parameter.kind}, got None")
    return tuple(map(parameter.convert, listed))


def _plain(parameter: Parameter, value: Any) -> Any:
    """What an array or tensor holds: a scalar, or a list if it has one dimension. Any other value as it is."""
    if is_tensor(value) or isinstance(value, np.ndarray):
        value = plain(value, f"'{parameter.name}'")
    if not (hasattr(value, "ndim") and hasattr(value, "tolist")):
        return value
    if value.ndim > 1:
        raise ValueError(f"expected a {parameter.kind}, got an array of the shape {list(value.shape)}")
    try:
        return value.tolist()
    except RuntimeError as error:  # torch has types of which it cannot say the values
        raise ValueError(f"the tensor cannot be read: {error}") from None


@contextmanager
def _naming(method: Method, parameter: str) -> Iterator[None]:
    try:
        yield
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(f"method '{method.name}': '{parameter}': {error}.") from None
