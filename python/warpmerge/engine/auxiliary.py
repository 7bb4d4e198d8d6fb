"""Auxiliary tensors of a merge in memory (methods/auxiliary.py)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from ..errors import RecipeError
from ..methods import Method
from ..methods.auxiliary import check_auxiliary
from .arrays import Array


class AuxiliaryTensors:
    """Those of all models, by label and name, all models of one kind before those of the next."""

    def __init__(
        self,
        method: Method | None = None,
        values: Mapping[str, Any] = MappingProxyType({}),
        models: Sequence[str] = (),
        names: Iterable[str] = (),
        place: Any = None,
    ) -> None:
        """models: their labels. names: of the weights. Raises RecipeError or CheckpointError for what does not fit."""
        self._kinds = method.auxiliary if method is not None else ()
        self._tensors: dict[str, dict[str, Array]] = {}
        weights = dict.fromkeys(names)
        for kind in self._kinds:
            for model, given in zip(models, values[kind.name], strict=True):
                if not isinstance(given, Mapping):
                    raise RecipeError(f"'{kind.name}' is a list of one state dict for each model, got {given!r}.")
                kind.check_names(kind.label(model), given, weights)
                self._tensors[kind.label(model)] = {name: Array.of(t, name, place) for name, t in given.items()}

    @property
    def labels(self) -> list[str]:
        return list(self._tensors)

    def arrays(self, name: str) -> list[Array]:
        return [tensors[name] for tensors in self._tensors.values() if name in tensors]

    def of(self, name: str, weight: Array) -> tuple[list[Array], tuple[tuple[int, ...], ...]]:
        """A weight's auxiliary tensors and their shapes, () without. Raises CheckpointError if they do not fit."""
        listed = [tensors.get(name) for tensors in self._tensors.values()]
        found = [None if a is None else (a.shape, a.dtype) for a in listed]
        shapes = check_auxiliary(self._kinds, name, (weight.shape, weight.dtype), found, self.labels)
        return [a for a in listed if a is not None], shapes
