"""The tokenizer of a model: its files and its vocabulary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import system
from ..errors import CheckpointError, unreadable
from ..models.companions import LARGEST
from ..models.documents import CONFIG_LIMIT, parse_json
from ..models.names import (
    ADDED_TOKENS,
    SPECIAL_TOKENS,
    TOKENIZER,
    TOKENIZER_CONFIG,
    is_tokenizer_file,
    is_vocabulary,
)
from ..models.sidecars import Content
from . import library
from .tokenizer_json import FLAGS, JsonReader, Token, TokenizerJson


@dataclass(frozen=True, eq=False)
class ModelTokenizer:
    """The tokenizer of a model.

    Attributes:
        title: what messages call the model.
        json: its tokenizer.json, with the tokens that files beside it add.
        files: by name, as the model has them.
    """

    title: str
    json: TokenizerJson
    files: Mapping[str, Content]

    @property
    def ids(self) -> Mapping[Token, int]:
        """The ids by token."""
        return self.json.ids

    @property
    def added(self) -> Mapping[str, Mapping[str, Any]]:
        """By text the added tokens with their flags, in the order of their ids."""
        return self.json.added


class Reader:
    """Reads tokenizers."""

    def __init__(self) -> None:
        self._reader = JsonReader()

    def read(self, files: Mapping[str, Content], directory: Path, title: str) -> ModelTokenizer | None:
        """The tokenizer among the companions of a model; None: there is none. Raises CheckpointError."""
        files = tokenizer_files(files)
        if TOKENIZER not in files:
            if not any(map(is_vocabulary, files)):
                return None
            files = library.converted(directory, title)
        made = self._reader.read(content(files[TOKENIZER]), title)
        beside = [name for name in (TOKENIZER_CONFIG, SPECIAL_TOKENS, ADDED_TOKENS) if name in files]
        with library.reading(title):
            new: dict[str, Mapping[str, Any]] = {}
            for text, flags in _beside({name: document(files[name], name) for name in beside}):
                if text not in made.ids:
                    new.setdefault(text, flags)
        return ModelTokenizer(title, made.changed(set(), new) if new else made, files)


def tokenizer_files(files: Mapping[str, Content]) -> dict[str, Content]:
    """Those of a model's companions that are its tokenizer's, the chat template included."""
    return {name: file for name, file in files.items() if is_tokenizer_file(name)}


def content(file: Content) -> bytes:
    """What a file holds. Raises CheckpointError."""
    if isinstance(file, bytes):
        return file
    try:
        return system.read_file(file.real, LARGEST)
    except OSError as error:
        raise unreadable(error.errno, error.strerror, file.path) from None


def document(file: Content, name: str) -> dict[str, Any]:
    """The object that a small JSON file of this name holds. Raises CheckpointError."""
    raw, where = content(file), name if isinstance(file, bytes) else str(file.path)
    if len(raw) > CONFIG_LIMIT:
        raise CheckpointError(f"{where} is too large for what it is: {len(raw)} bytes.")
    try:
        found = parse_json(raw, constants=True)
    except ValueError as error:
        raise CheckpointError(f"{where}: not valid JSON ({error}).") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{where}: not a JSON object.")
    return found


def _beside(documents: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The tokens that files beside tokenizer.json add, in the order in which transformers adds them."""
    config = documents.get(TOKENIZER_CONFIG, {})
    decoder = config.get("added_tokens_decoder")
    numbered = {int(n): entry for n, entry in decoder.items() if n.isdigit()} if isinstance(decoder, dict) else {}
    for _, entry in sorted(numbered.items()):
        text = token_text(entry)
        if text is not None:
            special = isinstance(entry, Mapping) and bool(entry.get("special"))
            yield text, flags(special) | {f: bool(entry[f]) for f in FLAGS if isinstance(entry, Mapping) and f in entry}
    added = {token: number for token, number in documents.get(ADDED_TOKENS, {}).items() if isinstance(number, int)}
    yield from ((text, flags(False)) for text in sorted(added, key=added.__getitem__))
    for listed in (documents.get(SPECIAL_TOKENS, {}), config):
        yield from ((text, flags(True)) for text in special_tokens(listed))


def flags(special: bool) -> dict[str, bool]:
    """Those of an added token of which nothing else is known: text that is no special token is normalized."""
    return dict.fromkeys(FLAGS, False) | {"normalized": not special, "special": special}


def special_tokens(listed: Mapping[str, Any]) -> list[str]:
    """The texts of the special tokens that a config or a map names."""
    found = [value for key, value in listed.items() if key.endswith("_token")]
    for key in ("additional_special_tokens", "extra_special_tokens"):
        more = listed.get(key)
        found += more if isinstance(more, list) else more.values() if isinstance(more, dict) else []
    return [text for value in found if (text := token_text(value))]


def token_text(value: Any) -> str | None:
    """The text of a token that is written as text or with its flags."""
    text = value.get("content") if isinstance(value, Mapping) else value
    return text if isinstance(text, str) and text else None
