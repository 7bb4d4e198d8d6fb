"""Slices: models that are merged with each other, whole or a range of layers of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..errors import UsageError
from ..methods import Base, Method
from ..models.reference import ModelRef
from .settings import Constant, Setting


@dataclass(frozen=True)
class RecipeModel:
    """A model of a slice.

    Attributes:
        ref: the reference.
        parameters: the settings that hold for this model alone.
        layers: the range of its layers, the end not included. None: the whole model.
    """

    ref: ModelRef
    parameters: Mapping[str, Setting] = field(default_factory=dict)
    layers: tuple[int, int] | None = None


@dataclass(frozen=True)
class Slice:
    """Models that are merged with each other: whole, or a range of layers of each.

    Attributes:
        method: the merge method.
        models: the models in order; the base is among them if it is listed.
        base: the base of this slice, or None.
        scopes: the settings for all models of the slice, the nearest first: its own, its module's, the recipe's.
    """

    method: Method
    models: tuple[RecipeModel, ...]
    base: ModelRef | None
    scopes: tuple[Mapping[str, Setting], ...]

    @property
    def inputs(self) -> tuple[RecipeModel, ...]:
        """The models that are merged, in order. A reference base is not one of them; an endpoint base is the first.

        If layers of the reference alone are listed, it is merged with itself: the result is the reference.
        """
        others = tuple(m for m in self.models if m.ref != self.base)
        if self.method.base.is_reference:
            return others if others or self.is_whole else self.models
        if self.method.base is Base.ENDPOINT and self.base is not None:
            return (self._base(), *others)
        return self.models

    @property
    def reference(self) -> RecipeModel | None:
        """The model that deltas are taken from, or None."""
        return self._base() if self.method.base.is_reference and self.base is not None else None

    def _base(self) -> RecipeModel:
        assert self.base is not None
        return next((m for m in self.models if m.ref == self.base), RecipeModel(self.base))

    @property
    def metadata_source(self) -> RecipeModel:
        """The model that has the output's names, shapes, dtypes and integer tensors."""
        return self.models[0] if self.base is None else self._base()

    @property
    def is_whole(self) -> bool:
        """Whether whole models are merged."""
        return self.models[0].layers is None

    def auxiliary(self, name: str) -> tuple[ModelRef, ...]:
        """The reference of each input's auxiliary tensors of this name. Raises UsageError if an input has none."""
        found = []
        for model in self.inputs:
            scopes = (model.parameters, *self.scopes)
            setting = next((scope[name] for scope in scopes if name in scope), None)
            if not isinstance(setting, Constant):
                raise UsageError(
                    f"method '{self.method.name}' needs the parameter '{name}' for the model '{model.ref}': the path "
                    f"of its checkpoint of {name} tensors."
                )
            found.append(setting.value)
        return tuple(found)
