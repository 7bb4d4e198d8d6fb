"""The tokenizer of a model: its files and its vocabulary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import system
from ..errors import CheckpointError, unreadable
from ..models.companions import LARGEST, Companion, companions
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

Token = str | int  # its text; an id below the largest one that no token has stands for itself
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True, eq=False)
class ModelTokenizer:
    """The tokenizer of a model.

    Attributes:
        title: what messages call the model.
        tokenizer: of the library `tokenizers`.
        files: by name, as the model has them.
        ids: by token.
        added: by text the added tokens (`tokenizers.AddedToken`), in the order of their ids.
    """

    title: str
    tokenizer: Any
    files: Mapping[str, Content]
    ids: Mapping[Token, int]
    added: Mapping[str, Any]

    def texts(self) -> dict[int, Token]:
        """The token of each id."""
        return {number: token for token, number in self.ids.items()}


class Reader:
    """Reads tokenizers. Models with the same files share one."""

    def __init__(self) -> None:
        self._known: dict[tuple[tuple[str, bytes], ...], ModelTokenizer] = {}

    def read(self, directory: Path, title: str) -> ModelTokenizer | None:
        """The tokenizer in a directory; None: there is none. Raises CheckpointError."""
        files: Mapping[str, Content] = tokenizer_files(directory)
        if TOKENIZER not in files:
            if not any(map(is_vocabulary, files)):
                return None
            files = library.converted(directory, title)
        read = [name for name in (TOKENIZER, TOKENIZER_CONFIG, SPECIAL_TOKENS, ADDED_TOKENS) if name in files]
        texts = {name: content(files[name]) for name in read}
        key = tuple(texts.items())
        if key not in self._known:
            documents = {name: document(files[name], name) for name in texts if name != TOKENIZER}
            found = library.parsed(_text(texts[TOKENIZER], title), title)
            with library.reading(title):
                for tokens in _beside(documents):
                    _add(found, tokens)
                self._known[key] = ModelTokenizer(title, found, files, ids_of(found, title), added_of(found))
        known = self._known[key]
        return ModelTokenizer(title, known.tokenizer, files, known.ids, known.added)


def tokenizer_files(directory: Path) -> dict[str, Companion]:
    """The files of a model's tokenizer by name, its chat template included. Raises CheckpointError."""
    return {name: file for name, file in companions(directory).items() if is_tokenizer_file(name)}


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


def _text(raw: bytes, title: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise CheckpointError(f"the tokenizer of {title} cannot be read: {TOKENIZER} is not UTF-8.") from None


def ids_of(tokenizer: Any, title: str) -> dict[Token, int]:
    """The ids of all tokens, and those that no token has. Raises CheckpointError if two tokens have the same id."""
    found: dict[Token, int] = dict(tokenizer.get_vocab(with_added_tokens=True))
    used = set(found.values())
    if len(used) < len(found):
        raise CheckpointError(
            f"the tokenizer of {title}: two tokens have the same id, as its ids have gaps; number them without gaps."
        )
    found.update((number, number) for number in range(max(used, default=-1)) if number not in used)
    return found


def added_of(tokenizer: Any) -> dict[str, Any]:
    """The added tokens in the order of their ids."""
    return {token.content: token for _, token in sorted(tokenizer.get_added_tokens_decoder().items())}


def _beside(documents: Mapping[str, Mapping[str, Any]]) -> Iterator[list[Any]]:
    """The tokens that files beside tokenizer.json add, in the order in which transformers adds them."""
    config = documents.get(TOKENIZER_CONFIG, {})
    decoder = config.get("added_tokens_decoder")
    numbered = {int(n): flags for n, flags in decoder.items() if n.isdigit()} if isinstance(decoder, dict) else {}
    yield [token for _, flags in sorted(numbered.items()) if (token := added_token(flags))]
    added = {token: number for token, number in documents.get(ADDED_TOKENS, {}).items() if isinstance(number, int)}
    yield [added_token(token) for token in sorted(added, key=added.__getitem__)]
    for listed in (documents.get(SPECIAL_TOKENS, {}), config):
        yield [added_token(token, special=True) for token in special_tokens(listed)]


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


def added_token(value: Any, *, special: bool = False) -> Any:
    """A `tokenizers.AddedToken` of a text, or of a mapping with flags; None: it is neither."""
    text = token_text(value)
    if text is None:
        return None
    flags = {flag: bool(value[flag]) for flag in FLAGS if flag in value} if isinstance(value, Mapping) else {}
    special = flags.pop("special", special)
    return library.tokenizers().AddedToken(text, special=special, **{"normalized": not special, **flags})


def _add(tokenizer: Any, tokens: list[Any]) -> None:
    new = [token for token in tokens if tokenizer.token_to_id(token.content) is None]
    if new:
        tokenizer.add_tokens(new)
