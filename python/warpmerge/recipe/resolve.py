"""A recipe's parameters for one tensor. Gradients need the tensor's layer; of several sources the first one wins."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ..errors import UsageError
from ..methods import Method, Parameter
from .settings import Setting
from .slices import Slice

# model.layers.3.  transformer.h.3.  blocks.3.  encoder.layer.3.  decoder.block.3.
_LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks|block)\.([0-9]{1,9})(?=\.|$)")


class Layer(NamedTuple):
    """The layer of a tensor, which is called stack + number + rest."""

    stack: str
    number: int
    rest: str


def layer_of(name: str) -> Layer | None:
    """The layer that a tensor belongs to; None: it is outside of any."""
    found = _LAYER.search(name)
    return Layer(name[: found.start(1)], int(found[1]), name[found.end(1) :]) if found else None


class Layers:
    """Places tensors on the layer axis: t runs from 0 (first layer) to 1 (last) in each stack of layers.

    As in mergekit, tensors outside of any layer (embeddings, final norm, head) are at t = 0, and a single layer is at
    t = 1. A stack is known by the part of the name before the number: an encoder and a decoder are two stacks.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._last: dict[str, int] = {}
        for layer in filter(None, map(layer_of, names)):
            self._last[layer.stack] = max(self._last.get(layer.stack, 0), layer.number)

    def t(self, name: str) -> float:
        layer = layer_of(name)
        if layer is None:
            return 0.0
        last = self._last[layer.stack]
        return layer.number / last if last else 1.0


def complete_values(
    method: Method,
    given: Mapping[str, Sequence[Any]],
    models: int,
    *,
    on_deltas: bool,
    missing: Callable[[Parameter, int], UsageError],
) -> dict[str, Any]:
    """The final value of each parameter: the given value, else the preset's, else the default.

    Args:
        method: the method.
        given: for each parameter a sequence of values, K of them if it is per model, else one; None: not given.
        models: K, the number of inputs.
        on_deltas: whether deltas are taken from a base.
        missing: makes the error for a required parameter that the model of this index lacks.

    Returns:
        A value for each parameter; a tuple of K values if it is per model.

    Raises:
        UsageError: values do not go together.
    """
    preset = method.preset({p.name: given[p.name][0] for p in method.parameters if not p.per_model})
    values: dict[str, Any] = {}
    for parameter in method.parameters:
        row = given[parameter.name]
        if parameter.required and parameter.name not in preset and None in row:
            raise missing(parameter, row.index(None))
        fallback = preset.get(parameter.name, parameter.default)
        filled = tuple(fallback if value is None else value for value in row)
        values[parameter.name] = filled if parameter.per_model else filled[0]
    method.check_values(values, models, on_deltas=on_deltas)
    return values


class Resolver:
    """Values of all parameters of a slice's method, tensor by tensor.

    The sources of a value, first to last: the model's own `parameters`, those of the slice, of its module and of the
    recipe, the preset that `semantics` names, the default. A source whose filters match nothing is passed over.
    """

    def __init__(self, part: Slice) -> None:
        self._part = part
        self._sources = {
            p.name: [
                [s[p.name] for s in scopes if p.name in s]
                for scopes in ([(m.parameters, *part.scopes) for m in part.inputs] if p.per_model else [part.scopes])
            ]
            for p in part.method.parameters
        }
        constant = all(s.constant for rows in self._sources.values() for row in rows for s in row)
        self._known: dict[tuple[Any, ...], Mapping[str, Any]] = {}  # by what was found: a layer's experts find the same
        self._shared = self._resolve("", 0.0, ()) if constant else None

    def values(self, name: str, t: float, inputs: Sequence[str] = ()) -> Mapping[str, Any]:
        """Parameter values for a tensor.

        Args:
            name: its name in the output; filters of parameters with one value for all models test it.
            t: its place on the layer axis.
            inputs: its name in each of the K models; filters of parameters of single models test it. Empty: all have
                the output's.

        Returns:
            A scalar for each parameter, a tuple of K where the parameter is per model.
        """
        return self._shared if self._shared is not None else self._resolve(name, t, inputs)

    def _resolve(self, name: str, t: float, inputs: Sequence[str]) -> Mapping[str, Any]:
        method = self._part.method
        found = {}
        for p in method.parameters:
            rows = self._sources[p.name]
            tested = inputs if inputs and p.per_model else [name] * len(rows)
            found[p.name] = tuple(_first(row, of, t) for row, of in zip(rows, tested, strict=True))
        key = tuple(map(repr, found.values()))
        if key not in self._known:
            try:
                self._known[key] = complete_values(
                    method,
                    found,
                    len(self._part.inputs),
                    on_deltas=self._part.reference is not None,
                    missing=lambda parameter, index: _Missing(str(self._missing(parameter, index, name))),
                )
            except _Missing as error:
                raise UsageError(str(error)) from None
            except UsageError as error:
                raise UsageError(f"tensor '{name}': {error}" if name else str(error)) from None
        return self._known[key]

    def _missing(self, parameter: Parameter, index: int, name: str) -> UsageError:
        model = f" for the model '{self._part.inputs[index].ref}'" if parameter.per_model else ""
        tensor = f" (tensor '{name}')" if name else ""
        return UsageError(f"method '{self._part.method.name}' needs the parameter '{parameter.name}'{model}{tensor}.")


class _Missing(UsageError):
    """An error whose message names the tensor already."""


def _first(row: list[Setting], name: str, t: float) -> Any:
    """The value of the first setting that has one for this tensor."""
    for setting in row:
        value = setting.at(name, t)
        if value is not None:
            return value
    return None
