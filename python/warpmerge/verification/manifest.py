"""The manifest of a finished merge, read back: what was merged, from which files, and the digest of each tensor."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from .. import system
from ..errors import CheckpointError
from ..models.documents import MANIFEST_LIMIT, read_json
from ..models.names import MANIFEST


class Record(NamedTuple):
    """What the manifest says of a tensor. Nothing is promised of the types: they are compared, not used."""

    dtype: Any
    shape: Any
    digest: Any


class Input(NamedTuple):
    """A model that was read.

    Attributes:
        model: its name in the recipe.
        path: of its directory.
        files: by name, of each weight file its size in bytes and the SHA-256 of its header ("": not known); of an
            adapter's config that of its content.
    """

    model: str
    path: str
    files: Mapping[str, tuple[int, str]]


class Manifest:
    """Raises CheckpointError wherever it turns out to be damaged."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / MANIFEST
        with self._reading():
            self._document = read_json(self.path, MANIFEST_LIMIT)
            self.tensors = {
                name: Record(record["dtype"], record["shape"], record["digest"])
                for name, record in self._document["tensors"].items()
            }

    @cached_property
    def version(self) -> str:
        """Of warpmerge."""
        with self._reading():
            return _typed(str, self._document["warpmerge"])

    @cached_property
    def recipe(self) -> dict[str, Any]:
        with self._reading():
            return _typed(dict, self._document["recipe"])

    @cached_property
    def seed(self) -> int:
        with self._reading():
            return _typed(int, self._document["seed"])

    @cached_property
    def inputs(self) -> list[Input]:
        with self._reading():
            return [
                Input(
                    _typed(str, model["model"]),
                    checked_path(_typed(str, model["path"])),
                    {
                        _typed(str, file["name"]): (
                            _typed(int, file["bytes"]),
                            _typed(str, file.get("header_sha256", file.get("sha256", ""))),
                        )
                        for file in model["files"]
                    },
                )
                for model in self._document["inputs"]
            ]

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, NotADirectoryError):
            found = "" if system.is_directory(self.path.parent) else "is not a directory, so it "
            raise CheckpointError(
                f"{self.path.parent} {found}has no {MANIFEST}: it is not a finished merge of warpmerge."
            ) from None
        except OSError as error:
            raise CheckpointError(f"cannot read {self.path}: {error.strerror}.") from None
        except (ValueError, LookupError, TypeError, AttributeError):
            raise CheckpointError(f"{self.path} is damaged: it is no manifest of warpmerge.") from None


def checked_path(text: str) -> str:
    """The text. Raises ValueError if no file can have that path."""
    if b"\0" in os.fsencode(text):
        raise ValueError("a path has no NUL")
    return text


def _typed(kind: type, value: Any) -> Any:
    """The value. Raises TypeError if it is of another kind; True is no number."""
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError
    return value
