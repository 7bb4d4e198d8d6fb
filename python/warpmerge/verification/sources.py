"""Where the models of a finished merge are now: its recipe with a directory for each model."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from .. import system
from ..errors import CheckpointError, UsageError, close_matches, shown
from ..methods import find
from ..models import Checkpoint
from ..models.adapter import Adapter
from ..models.checkpoint import InputFile
from ..models.names import ADAPTER_CONFIG
from ..models.reference import ModelRef
from ..recipe import Recipe
from .manifest import Input, Manifest, checked_path

HINT = "say where it is with --model OLD=NEW (in Python models={old: new})"


class Sources:
    """`moved`: of models that are elsewhere now the new directory, by their name in the recipe, by the directory that
    the manifest names, or by a directory above it."""

    def __init__(self, manifest: Manifest, moved: Mapping[str, str | Path]) -> None:
        self._manifest = manifest
        moved = _paths(moved)
        self._by_name: dict[str, str] = {}
        self._inputs: dict[str, Input] = {}  # by the real path of where each is now
        unused = dict(moved)
        for model in manifest.inputs:
            path = _moved(model, moved, unused)
            self._by_name.setdefault(model.model, path)
            self._inputs.setdefault(os.path.realpath(path), model)
        if unused:
            names = [model.model for model in manifest.inputs]
            raise UsageError(
                f"{manifest.path} names no model {shown(next(iter(unused)))}"
                f"{close_matches(next(iter(unused)), names) or '.'} Its models: {', '.join(names)}."
            )

    def recipe(self) -> Recipe:
        """The recipe of the merge. Raises CheckpointError if it cannot be used."""
        document = self._manifest.recipe
        try:
            method = find(document.get("merge_method"))
            located = self._located(document, [kind.name for kind in method.auxiliary])
            return Recipe.load(located)
        except CheckpointError:
            raise
        except (UsageError, LookupError, TypeError, AttributeError) as error:
            reason = f": {error}" if isinstance(error, UsageError) else "."
            raise CheckpointError(f"{self._manifest.path}: its recipe cannot be used{reason}") from None

    def check(self) -> None:
        """Raises CheckpointError if a model is not where it should be, or its weight files are not those that were
        merged."""
        for path, model in self._inputs.items():
            if not system.is_directory(path):
                raise CheckpointError(f"the model '{model.model}' is not in {path} any more; {HINT}.")
            with closing(Adapter(ModelRef(path)) if ADAPTER_CONFIG in model.files else Checkpoint(path)) as part:
                found = {file.path.name: file for file in part.files}
                for name in sorted(found.keys() | model.files.keys()):
                    if name not in found or name not in model.files or not _is_same(found[name], *model.files[name]):
                        raise CheckpointError(
                            f"{part.path / name} is not the file of '{model.model}' that was merged: the "
                            f"manifest has another size or header; {HINT}."
                        )

    def _located(self, part: Any, references: Sequence[str]) -> Any:
        """A recipe, or a module, slice or model of one, with the directory of each model in its place."""
        if not isinstance(part, Mapping):
            return part
        located = dict(part)
        for key, value in part.items():
            match key, value:
                case (("base_model" | "model"), _):
                    located[key] = None if value is None else self._path(value)
                case (("models" | "sources"), list()):
                    located[key] = [
                        self._located(v, references) if isinstance(v, Mapping) else self._path(v) for v in value
                    ]
                case "slices", list():
                    located[key] = [self._located(v, references) for v in value]
                case "modules", Mapping():
                    located[key] = {name: self._located(v, references) for name, v in value.items()}
                case "parameters", Mapping():
                    located[key] = {n: self._path(v) if n in references else v for n, v in value.items()}
        return located

    def _path(self, reference: Any) -> str:
        """The directory of a model, as the recipe refers to it."""
        name = _spelling(reference)
        path = self._by_name.get(name) or self._adapted(name) or self._same_directory(name)
        if path is None:
            raise CheckpointError(f"{self._manifest.path} does not say where the model '{name}' was; {HINT}.")
        return path

    def _adapted(self, name: str) -> str | None:
        """A model with an adapter: the manifest has both by their own names."""
        for at, character in enumerate(name):
            found = [self._by_name.get(n) or self._same_directory(n) for n in (name[:at], name[at + 1 :])]
            if character == "+" and found[0] and found[1]:
                return f"{found[0]}+{found[1]}"
        return None

    def _same_directory(self, name: str) -> str | None:
        """A recipe may spell a directory in several ways; the manifest has the first."""
        for other, path in self._by_name.items():
            if os.path.normpath(other) == os.path.normpath(name):
                return path
        try:
            here = os.path.realpath(os.path.expanduser(checked_path(name)))
        except ValueError:
            return None
        return here if here in self._inputs else None


def _paths(moved: Mapping[str, str | Path]) -> dict[str, str]:
    """With absolute new paths. Raises UsageError if one is no path."""
    try:
        return {str(old): os.path.abspath(checked_path(os.path.expanduser(new))) for old, new in moved.items()}
    except (TypeError, ValueError, AttributeError):
        raise UsageError(f"models must be a mapping from old to new paths of models, got {shown(moved)}.") from None


def _moved(model: Input, moved: Mapping[str, str], unused: dict[str, str]) -> str:
    """Where it is now: what says most about it decides, and is taken out of `unused`."""
    for old in sorted(moved, key=lambda old: (old != model.model, -len(old))):
        inner = "." if old == model.model else os.path.relpath(model.path, old) if os.path.isabs(old) else os.pardir
        if inner.split(os.sep)[0] != os.pardir:
            unused.pop(old, None)
            return os.path.normpath(os.path.join(moved[old], inner))
    return model.path


def _spelling(reference: Any) -> str:
    """A reference in the spelling of the manifest. Mergekit's long form is a mapping: {model: {path, revision}}."""
    if isinstance(reference, Mapping) and reference.get("lora") is not None:
        return f"{_spelling(reference['model'])}+{_spelling(reference['lora'])}"
    while isinstance(reference, Mapping) and "model" in reference:
        reference = reference["model"]
    if isinstance(reference, Mapping):
        path, revision = reference["path"], reference.get("revision")
        return f"{path}" if revision is None else f"{path}@{revision}"
    return str(reference)


def _is_same(file: InputFile, size: int, digest: str) -> bool:
    """Whether a file is as the manifest says; older ones say nothing of headers."""
    return file.identity.size == size and digest in ("", *file.digests.values())
