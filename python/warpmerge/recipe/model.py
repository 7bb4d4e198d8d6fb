"""Recipes: which models are merged by which method, and with which values."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..dtypes import DType
from ..errors import UsageError, shown
from ..methods import Method
from ..models.documents import yaml_text
from ..models.reference import ModelRef
from .document import plain, read
from .parse import parse
from .slices import Slice


@dataclass(frozen=True)
class Recipe:
    """A checked recipe.

    Attributes:
        method: the merge method.
        slices: one slice of whole models, or slices of layers in the order of the output.
        base: the reference of `base_model`, or None.
        dtype: the key `dtype`, or None.
        out_dtype: the key `out_dtype`, or None.
        notices: what the recipe says without effect, a sentence each.
        source: the document that the recipe was made from.
    """

    method: Method
    slices: tuple[Slice, ...]
    base: ModelRef | None
    dtype: DType | None = None
    out_dtype: DType | None = None
    notices: tuple[str, ...] = ()
    source: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, source: str | Path | Mapping[str, Any] | Recipe) -> Recipe:
        """Reads and checks a recipe. No model is opened.

        Args:
            source: path of a YAML file, a dictionary with the same keys, or a Recipe (returned as it is).

        Returns:
            The Recipe.

        Raises:
            UsageError: the recipe is wrong. The message names the file and the place, and says what to write instead.

        Example:
            >>> wm.Recipe.load({"merge_method": "linear", "models": ["math", "code"], "parameters": {"weight": 1}})
        """
        if isinstance(source, Recipe):
            return source
        if isinstance(source, Mapping):
            return cls._read(source, "recipe")
        if not isinstance(source, (str, os.PathLike)):
            raise UsageError(f"a recipe must be a path, a dictionary or a Recipe, got {shown(source)}.")
        path = Path(source)
        return cls._read(read(path), str(path))

    @classmethod
    def _read(cls, document: Any, where: str) -> Recipe:
        document = plain(document, where)
        return cls(*parse(document, where), source=document)

    @property
    def models(self) -> tuple[ModelRef, ...]:
        """The references of all models, each once, in the order of the recipe."""
        return tuple(dict.fromkeys(model.ref for part in self.slices for model in part.models))

    @property
    def metadata_source(self) -> ModelRef:
        """The model whose config, tokenizer and other small files the output takes over."""
        return self.base or self.slices[0].models[0].ref

    def to_yaml(self) -> str:
        """The recipe as YAML."""
        return yaml_text(plain(self.source, "recipe"), flow=None, width=80)
