"""Recipes: which models are merged by which method, and with which values."""

from __future__ import annotations

import dataclasses
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
from .stages import names_of, ordered
from .tokenizer import ChatTemplate, Tokenizer


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
        stages: documents whose results this one merges: names and recipes, in the order in which they are merged.
        tokenizer: what `tokenizer` or `tokenizer_source` asks for, or None.
        chat_template: the key `chat_template`, or None.
        source: the document that the recipe was made from.
    """

    method: Method
    slices: tuple[Slice, ...]
    base: ModelRef | None
    dtype: DType | None = None
    out_dtype: DType | None = None
    notices: tuple[str, ...] = ()
    tokenizer: Tokenizer | None = None
    chat_template: ChatTemplate | None = None
    source: Mapping[str, Any] = field(default_factory=dict)
    stages: tuple[tuple[str, Recipe], ...] = ()

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
        documents = read(path)
        if len(documents) == 1:
            return cls._read(documents[0], str(path))
        names = names_of(documents, str(path))
        recipes = [cls._read(document, f"{path}: document {n + 1}") for n, document in enumerate(documents)]
        *stages, (_, last) = ordered(recipes, names, str(path))
        notices = [notice for _, recipe in stages for notice in recipe.notices]
        return dataclasses.replace(last, stages=tuple(stages), notices=(*notices, *last.notices))

    @classmethod
    def _read(cls, document: Any, where: str) -> Recipe:
        document = plain(document, where)
        return cls(*parse(document, where), source=document)

    @property
    def models(self) -> tuple[ModelRef, ...]:
        """The references of all models, each once, in the order of the recipe."""
        return tuple(dict.fromkeys(model.ref for part in self.slices for model in part.models))

    @property
    def references(self) -> tuple[ModelRef, ...]:
        """The references of all models and bases, and of those that tokens come from, each once."""
        named = self.tokenizer.models if self.tokenizer else ()
        return tuple(dict.fromkeys([*self.merged, *named]))

    @property
    def merged(self) -> tuple[ModelRef, ...]:
        """The references of all models and bases, each once, that of the metadata source first."""
        bases = [part.base for part in self.slices if part.base is not None]
        return tuple(dict.fromkeys([self.metadata_source, *self.models, *bases]))

    def located(self, places: Mapping[str, Path]) -> Recipe:
        """The recipe with directories in place of the names of documents."""

        def there(ref: ModelRef) -> ModelRef:
            place = places.get(ref.path)
            return ref if place is None else dataclasses.replace(ref, path=str(place))

        slices = tuple(
            dataclasses.replace(
                part,
                models=tuple(dataclasses.replace(model, ref=there(model.ref)) for model in part.models),
                base=None if part.base is None else there(part.base),
            )
            for part in self.slices
        )
        return dataclasses.replace(
            self,
            slices=slices,
            base=None if self.base is None else there(self.base),
            tokenizer=None if self.tokenizer is None else self.tokenizer.located(there),
        )

    @property
    def metadata_source(self) -> ModelRef:
        """The model whose config, tokenizer and other small files the output takes over."""
        return self.base or self.slices[0].models[0].ref

    def to_yaml(self) -> str:
        """The recipe as YAML, all documents of it."""
        documents = [*(recipe.source for _, recipe in self.stages), self.source]
        return "---\n".join(yaml_text(plain(d, "recipe"), flow=None, width=80) for d in documents)
