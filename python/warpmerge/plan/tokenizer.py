"""Recipes that choose a tokenizer or a chat template: what becomes of the tensors, the config and the small files."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import system
from ..errors import CheckpointError, UsageError
from ..models import Checkpoint
from ..models.checkpoint import TensorFiles
from ..models.companions import companions
from ..models.names import GENERATION
from ..models.picked import Picked, Replaced
from ..models.sidecars import Content
from ..models.view_columns import Model
from ..models.views import View
from ..recipe import ModelRef, Recipe
from ..recipe.tokenizer import Tokenizer
from ..vocabulary import (
    Input,
    Member,
    ModelTokenizer,
    OutputTokenizer,
    Reader,
    Rows,
    chosen,
    output_tokenizer,
    tokenizer_files,
    vocabulary_tensors,
    with_template,
    with_vocabulary,
)
from ..vocabulary.model_tokenizer import document
from ..vocabulary.places import renamed
from ..vocabulary.tokenizer_json import Token, json_bytes
from .arrange import Arrangement, Opened
from .tokenized import Tokenized


def with_tokenizer(recipe: Recipe, found: Arrangement, opened: Opened) -> tuple[Arrangement, Tokenized]:
    """The arrangement with the rows of the output's tokens, and the files of the tokenizer.

    Raises:
        UsageError: the recipe asks for a token or a model that is not there, or a library is missing.
        CheckpointError: a tokenizer is missing or damaged.
    """
    work = _Work(recipe, found, opened)
    if recipe.tokenizer is not None:
        found = work.rearranged(recipe.tokenizer)
    return found, work.result()


@dataclass
class _Work:
    recipe: Recipe
    found: Arrangement
    opened: Opened
    files: Mapping[str, Content] | None = None
    notices: list[str] = field(default_factory=list)
    directories: list[Path] = field(default_factory=list)
    fingerprint: str = ""

    def rearranged(self, choice: Tokenizer) -> Arrangement:
        if self.found.auxiliary:
            raise UsageError(
                f"method '{self.recipe.method.name}' needs auxiliary tensors, whose rows no tokenizer rearranges; "
                "remove 'tokenizer' and 'tokenizer_source'."
            )
        members = {member.ref: member for member in self._members(choice)}
        base, *_ = members.values()
        output = output_tokenizer(choice, list(members.values()))
        rows = Rows(choice, output.json)
        views = self._views(rows, members)
        for name, tokens in rows.without.items():
            if tokens:
                self.notices.append(
                    f"tensor '{name}': no model has a row for {len(tokens)} of the tokens, such as "
                    f"{min(map(repr, tokens))}: they get zeros."
                )
        self.notices += output.notices
        self.fingerprint = _digest(rows, list(members.values()))
        moved = _moved(base.tokenizer, output)
        self.files = {**output.files, **self._generation(moved)}
        config = with_vocabulary(self.found.config, rows.count, base.rows or 0, moved)
        return _replaced(self.found, views, config)

    def result(self) -> Tokenized:
        recipe, source = self.recipe, self.opened(self.recipe.metadata_source)
        if recipe.chat_template is not None:
            text = chosen(recipe.chat_template, (self.opened(ref).companions() for ref in recipe.merged))
            if text is not None:
                own = tokenizer_files(source.companions()) if self.files is None else self.files
                self.files = with_template(own, text)
        return Tokenized(self.files, tuple(self.notices), tuple(self.directories), self.fingerprint)

    def _members(self, choice: Tokenizer) -> Iterator[Member]:
        """The models with their tokenizers: first the base, then the others in the order of the recipe."""
        reader = Reader()
        merged = self.recipe.merged
        base: ModelTokenizer | None = None
        for ref in dict.fromkeys([*merged, *choice.models]):
            title = f"model '{ref}'"
            if ref in merged:
                directory, files = self.opened(ref).path, self.opened(ref).companions()
            else:
                directory, files = self._beside(ref)
            tokenizer = reader.read(files, directory, title)
            if tokenizer is None and (base is None or ref == choice.source):
                raise CheckpointError(
                    f"{directory} has no tokenizer, which the recipe asks for; add its tokenizer.json, or remove "
                    "'tokenizer' and 'tokenizer_source'."
                )
            if tokenizer is None:
                assert base is not None
                self.notices.append(f"{title} has no tokenizer; it is taken to be that of {base.title}.")
                tokenizer = base
            base = base or tokenizer
            rows = next(iter(vocabulary_tensors(self.opened(ref)).values())) if ref in merged else None
            yield Member(ref, tokenizer, rows)

    def _beside(self, ref: ModelRef) -> tuple[Path, Mapping[str, Content]]:
        """The directory and the companions of a model that gives its tokenizer only, and needs no weights."""
        path = Path(os.path.expanduser(ref.path))
        if ref.revision is None and system.is_directory(path):
            found: tuple[Path, Mapping[str, Content]] = path, companions(path)
        else:
            checkpoint = self.opened(ref)
            found = checkpoint.path, checkpoint.companions()
        self.directories.append(found[0])
        return found

    def _views(self, rows: Rows, members: Mapping[ModelRef, Member]) -> dict[str, dict[int, View]]:
        """By tensor and id of a checkpoint its view."""
        models = [*self.found.inputs, self.found.source, *([self.found.base] if self.found.base else [])]
        found: dict[str, dict[int, View]] = {}
        places: dict[int, Mapping[str, int]] = {}  # by id of a checkpoint its tensors with a vocabulary
        for name in self.found.source.names:
            source = _holder(self.found.source, name)
            if source is None:
                continue
            if id(source) not in places:
                places[id(source)] = vocabulary_tensors(source)
            if name not in places[id(source)]:
                continue
            holders = {id(h): h for h in (_holder(model, name) for model in models) if h}
            part = self.found.slice_of(name)
            inputs = [Input(h.ref, members[h.ref].tokenizer.json, h.column([name]).view(0)) for h in holders.values()]
            base = next((n for n, i in enumerate(inputs) if part.base is not None and i.ref == part.base), None)
            found[name] = dict(zip(holders, rows.views(inputs, base, self.recipe.dtype, name), strict=True))
        return found

    def _generation(self, moved: Callable[[int], int | None] | None) -> dict[str, Content]:
        """The settings of generation name special tokens by their ids."""
        file = self.opened(self.recipe.metadata_source).companions().get(GENERATION) if moved else None
        if file is None or moved is None:
            return {}
        return {GENERATION: json_bytes(renamed(document(file, GENERATION), moved))}


def _holder(model: Model, name: str) -> Checkpoint | None:
    assert isinstance(model, TensorFiles | Picked)
    holder: Checkpoint | None = model.holder(name)
    return holder


def _moved(base: ModelTokenizer, output: OutputTokenizer) -> Callable[[int], int | None] | None:
    """From a token's id in the base to its id in the output; None: no id changes."""
    if output.json is base.json or base.ids.items() <= output.json.ids.items():
        return None
    texts: dict[int, Token] = {number: token for token, number in base.ids.items()}
    return lambda number: output.json.ids.get(texts.get(number, number))


def _digest(rows: Rows, members: list[Member]) -> str:
    found = hashlib.sha256()
    for member in members:
        found.update(rows.own(member.tokenizer.json, member.rows or 0).tobytes())
    return found.hexdigest()


def _replaced(found: Arrangement, views: Mapping[str, Mapping[int, View]], config: dict[str, Any]) -> Arrangement:
    """The arrangement with other views in place of those of the checkpoints."""
    made: dict[int, Model] = {}

    def fitted(model: Model) -> Model:
        assert isinstance(model, TensorFiles | Picked)
        if id(model) not in made:
            held = {name: of.get(id(model.holder(name))) for name, of in views.items()}
            made[id(model)] = Replaced(model, {name: view for name, view in held.items() if view is not None})
        return made[id(model)]

    return dataclasses.replace(
        found,
        source=fitted(found.source),
        inputs=[fitted(model) for model in found.inputs],
        base=fitted(found.base) if found.base else None,
        config=config,
        kinds=found.source.column(found.source.names).kinds,
    )
