"""The file tokenizer.json: its vocabulary and its added tokens, read and changed.

A model's tokenizer.json has up to 30 MB, nearly all of it the vocabulary and merges under the key `model`, and models
that are merged mostly have the same. So this part is kept as it is written, and what equal parts say is read once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from ..errors import CheckpointError
from ..models.documents import parse_json
from . import library

Token = str | int  # its text; an id below the largest one that no token has stands for itself
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")

CANDIDATES = 8  # places that are tried
SPACES = 64  # that may follow the last bracket
_MODEL, _VOCABULARY = (re.compile(rb'"%b"\s*:\s*' % key) for key in (b"model", b"vocab"))


@dataclass(frozen=True, eq=False)
class TokenizerJson:
    """What a tokenizer.json says.

    Attributes:
        title: what messages call the model.
        head: all keys but `model` and `added_tokens`.
        model: the value of `model`, as it is written.
        vocabulary: its ids by token; the same object for the same text.
        added: by text the added tokens with their flags, in the order of their ids.
        ids: by token.
        dense: whether every reader gives new tokens the ids that follow.
    """

    title: str
    head: Mapping[str, Any]
    model: bytes
    vocabulary: Mapping[Token, int]
    added: Mapping[str, Mapping[str, Any]]
    ids: Mapping[Token, int]
    dense: bool

    def shared(self, other: TokenizerJson) -> int:
        """How many of the first ids are those of the same tokens in both, at least."""
        same = self.vocabulary is other.vocabulary and self.dense and other.dense
        return len(self.vocabulary) if same else 0

    def text(self) -> bytes:
        """The file."""
        listed = [{"id": self.ids[token], "content": token, **flags} for token, flags in self.added.items()]
        start = json_bytes({**self.head, "added_tokens": listed, "model": None})
        return b"".join([start.removesuffix(b"null\n}\n"), self.model, b"}\n"])

    def changed(self, lost: set[Token], new: Mapping[str, Mapping[str, Any]]) -> TokenizerJson:
        """Without some tokens, then with new ones that have these flags. Raises CheckpointError if that cannot be."""
        ids = {token: number for token, number in self.ids.items() if token not in lost} if lost else dict(self.ids)
        added = {token: flags for token, flags in self.added.items() if token not in lost} | dict(new)
        for token in new:
            ids[token] = len(ids)
        made = dataclasses.replace(self, added=added, ids=ids)
        if lost:
            vocabulary = {token: number for token, number in self.vocabulary.items() if token not in lost}
            made = dataclasses.replace(made, model=_stripped(self.model, lost), vocabulary=vocabulary)
        if lost or not self.dense:
            made._check()
        return made

    def _check(self) -> None:
        """Raises CheckpointError if the library that everybody reads the file with finds other ids."""
        found = library.parsed(self.text(), self.title).get_vocab(with_added_tokens=True)
        if found != {token: number for token, number in self.ids.items() if isinstance(token, str)}:
            raise CheckpointError(
                f"the tokenizer of {self.title}: its ids have gaps, so that new tokens cannot follow them; number its "
                "tokens without gaps."
            )


class JsonReader:
    """Reads tokenizer.json files."""

    def __init__(self) -> None:
        self._known: list[tuple[bytes, dict[Token, int], bool]] = []  # texts of models, each with what it says

    def read(self, raw: bytes, title: str) -> TokenizerJson:
        """Raises CheckpointError if it is no tokenizer."""
        with library.reading(title):
            head, model = _split(raw)
            known = next((found for found in self._known if found[0] == model), None)
            if known is None:
                known = model, *_vocabulary(model)
                self._known.append(known)
            model, vocabulary, dense = known
            entries = head.pop("added_tokens", None) or []
            added = {entry["content"]: {flag: bool(entry.get(flag)) for flag in FLAGS} for entry in entries}
            numbers = {entry["content"]: entry["id"] for entry in entries}
        if not dense or not _follow(vocabulary, numbers):
            return _read_by_library(raw, head, model, title)
        return TokenizerJson(title, head, model, vocabulary, added, vocabulary | numbers, True)


def json_bytes(value: Any) -> bytes:
    """A small JSON file."""
    try:
        return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:  # halves of surrogate pairs, as JSON may spell them
        return (json.dumps(value, indent=2) + "\n").encode()


def _split(raw: bytes) -> tuple[dict[str, Any], bytes]:
    """The document without the key `model`, and the text of its value. Raises ValueError."""
    start, head = _value(raw, _MODEL)
    last = raw[-SPACES:].rstrip()
    model = raw[start : len(raw) - len(raw[-SPACES:]) + len(last) - 1]
    if not last.endswith(b"}") or not model[-SPACES:].rstrip().endswith(
        b"}"
    ):  # other keys follow, though no library writes any
        head = parse_json(raw)
        return {key: value for key, value in head.items() if key != "model"}, json_bytes(head["model"])
    head.pop("model")
    return head, model


def _value(raw: bytes, key: re.Pattern[bytes]) -> tuple[int, dict[str, Any]]:
    """Where the value of a key of the outermost mapping starts, and the mapping up to there. Raises ValueError."""
    for found in islice(key.finditer(raw), CANDIDATES):
        with contextlib.suppress(ValueError):  # a key of a deeper mapping
            return found.end(), parse_json(raw[: found.end()] + b"null}")
    raise ValueError(f"it has no {key.pattern[1:6].decode()}")


def _vocabulary(model: bytes) -> tuple[dict[Token, int], bool]:
    """The ids by token, and whether they have no gaps. Merges, which come after them, are not looked at. Raises
    ValueError."""
    start, _ = _value(model, _VOCABULARY)
    found, _ = json.JSONDecoder().raw_decode(model[start:].decode())
    if isinstance(found, list):  # Unigram: pairs of token and score in the order of ids
        found = {token: number for number, (token, _) in enumerate(found)}
    if not isinstance(found, dict) or not set(map(type, found.values())) <= {int}:
        raise ValueError("its model has no vocabulary")
    numbers = set(found.values())
    return found, len(numbers) == len(found) == max(numbers, default=-1) + 1 and min(numbers, default=0) >= 0


def _follow(vocabulary: Mapping[Token, int], added: Mapping[str, int]) -> bool:
    """Whether added tokens have the ids that every reader gives them: that of the vocabulary, else the one after the
    last."""
    count = len(vocabulary)
    for token, number in added.items():
        if number != vocabulary.get(token, count):
            return False
        count += token not in vocabulary
    return True


def _read_by_library(raw: bytes, head: dict[str, Any], model: bytes, title: str) -> TokenizerJson:
    """Its ids and added tokens as the library `tokenizers` finds them."""
    made = library.parsed(raw, title)
    ids: dict[Token, int] = dict(made.get_vocab(with_added_tokens=True))
    used = set(ids.values())
    if len(used) < len(ids):
        raise CheckpointError(f"the tokenizer of {title} has two tokens of one id; number its tokens without gaps.")
    ids.update((number, number) for number in range(max(used, default=-1)) if number not in used)
    decoder = sorted(made.get_added_tokens_decoder().items())
    added = {token.content: {flag: getattr(token, flag) for flag in FLAGS} for _, token in decoder}
    return TokenizerJson(title, head, model, ids, added, ids, False)


def _stripped(model: bytes, tokens: set[Token]) -> bytes:
    """The model without these tokens."""
    made = parse_json(model)
    vocabulary = made["vocab"]
    if isinstance(vocabulary, list):
        made["vocab"] = [entry for entry in vocabulary if entry[0] not in tokens]
    else:
        made["vocab"] = {token: number for token, number in vocabulary.items() if token not in tokens}
    if "merges" in made:
        merges = [entry.split(" ") if isinstance(entry, str) else entry for entry in made["merges"]]
        made["merges"] = [m for m in merges if tokens.isdisjoint([*m, "".join(m)])]
    return json_bytes(made)
