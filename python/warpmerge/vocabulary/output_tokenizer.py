"""The tokenizer of the output: whose it is, which tokens it gains and loses, and its files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..models.names import ADDED_TOKENS, SPECIAL_TOKENS, TOKENIZER, TOKENIZER_CONFIG, is_vocabulary
from ..models.reference import ModelRef
from ..models.sidecars import Content
from ..recipe.tokenizer import UNION, Tokenizer
from . import library
from .model_tokenizer import (
    FLAGS,
    ModelTokenizer,
    Token,
    document,
    ids_of,
    token_text,
)


@dataclass(frozen=True)
class Member:
    """A model of a merge, as far as its vocabulary goes.

    Attributes:
        ref: the model.
        tokenizer: its tokenizer.
        rows: the rows of its embedding; None: it is not merged.
    """

    ref: ModelRef
    tokenizer: ModelTokenizer
    rows: int | None

    def has(self, token: Token) -> bool:
        """Whether it has a token and a row for it."""
        number = self.tokenizer.ids.get(token)
        return number is not None and (self.rows is None or number < self.rows)


@dataclass(frozen=True)
class OutputTokenizer:
    """The tokenizer of the output.

    Attributes:
        donor: the model that it comes from.
        ids: by token. A number stands for an id that no token has.
        files: by name.
        notices: what users should know, a sentence each.
    """

    donor: Member
    ids: Mapping[Token, int]
    files: Mapping[str, Content]
    notices: tuple[str, ...]


def output_tokenizer(choice: Tokenizer, members: Sequence[Member]) -> OutputTokenizer:
    """What `choice` makes of the members' tokenizers; the first member is the base."""
    donor = next((m for m in members if m.ref == choice.source), members[0])
    notices = []
    beyond: list[Token] = []
    if not isinstance(choice.source, ModelRef):  # a model that the recipe names is taken as it is
        beyond = [token for token in donor.tokenizer.ids if not donor.has(token)]
        if beyond:
            notices.append(
                f"the tokenizer of {donor.tokenizer.title} has {len(beyond)} tokens beyond the {donor.rows} rows of "
                f"its embedding, such as {str(beyond[-1])!r}: they are left out."
            )
    known = donor.tokenizer.ids.keys() - set(beyond)
    new: dict[str, Any] = {}
    if choice.source == UNION:
        new = dict(_gained(members, known, notices))
    plain = library.tokenizers().AddedToken
    for token in choice.tokens:
        if token not in known and token not in new:
            new[token] = plain(token, special=False, normalized=True)
    if not beyond and not new:
        return OutputTokenizer(donor, donor.tokenizer.ids, donor.tokenizer.files, tuple(notices))
    with library.reading(donor.tokenizer.title):
        made = library.parsed(_stripped(donor.tokenizer.tokenizer.to_str(), set(beyond)), donor.tokenizer.title)
        made.add_tokens(list(new.values()))
        ids = ids_of(made, donor.tokenizer.title)
        files = _files(donor.tokenizer, made, set(beyond), {ids[token]: token for token in new})
    return OutputTokenizer(donor, ids, files, tuple(notices))


def _gained(members: Sequence[Member], known: set[Token], notices: list[str]) -> Iterator[tuple[str, Any]]:
    """The tokens that the base lacks: first the ordinary ones of each model, then the added ones, by model and id."""
    seen = set(known)
    token_of = library.tokenizers().AddedToken
    for added in (False, True):
        for member in members:
            theirs = member.tokenizer
            if member.rows is None:
                continue
            for token in sorted(theirs.ids, key=theirs.ids.__getitem__) if not added else list(theirs.added):
                if token in seen or isinstance(token, int) or (token in theirs.added) != added or not member.has(token):
                    continue
                seen.add(token)
                yield token, theirs.added[token] if added else token_of(token, special=False, normalized=True)
    for token in sorted({token for member in members for token in member.tokenizer.added}):
        flags = {
            tuple(getattr(member.tokenizer.added[token], flag) for flag in FLAGS)
            for member in members
            if token in member.tokenizer.added
        }
        if len(flags) > 1:
            notices.append(f"the models have the token {token!r} with different flags; those of the first one hold.")


def _stripped(text: str, tokens: set[Token]) -> str:
    """A tokenizer.json without these tokens."""
    if not tokens:
        return text
    made = json.loads(text)
    made["added_tokens"] = [entry for entry in made["added_tokens"] if entry["content"] not in tokens]
    model = made["model"]
    vocabulary = model["vocab"]
    if isinstance(vocabulary, list):  # Unigram: pairs of token and score in the order of ids
        model["vocab"] = [entry for entry in vocabulary if entry[0] not in tokens]
    else:
        model["vocab"] = {token: number for token, number in vocabulary.items() if token not in tokens}
    if "merges" in model:
        merges = [entry.split(" ") if isinstance(entry, str) else entry for entry in model["merges"]]
        model["merges"] = [m for m in merges if tokens.isdisjoint([*m, "".join(m)])]
    return json.dumps(made, ensure_ascii=False)


def _files(donor: ModelTokenizer, made: Any, lost: set[Token], new: Mapping[int, str]) -> dict[str, Content]:
    """The donor's files with tokens lost and gained. Vocabularies in other forms than tokenizer.json go if tokens went:
    no library edits them."""
    files = {name: file for name, file in donor.files.items() if not (lost and is_vocabulary(name))}
    files[TOKENIZER] = made.to_str(pretty=True).encode()
    added = {token.content: token for token in made.get_added_tokens_decoder().values()}
    for name in {TOKENIZER_CONFIG, SPECIAL_TOKENS, ADDED_TOKENS} & files.keys():
        found = document(files[name], name)
        if name == ADDED_TOKENS:
            kept = {token: number for token, number in found.items() if token not in lost}
            files[name] = _json(kept | {token: number for number, token in new.items()})
            continue
        changed = {key: value for key, value in found.items() if token_text(value) not in lost}
        for key in ("additional_special_tokens", "extra_special_tokens"):
            if isinstance(changed.get(key), list):
                changed[key] = [value for value in changed[key] if token_text(value) not in lost]
        decoder = changed.get("added_tokens_decoder")
        if isinstance(decoder, dict):
            kept = {number: flags for number, flags in decoder.items() if token_text(flags) not in lost}
            changed["added_tokens_decoder"] = kept | {
                str(number): {"content": token, **{flag: getattr(added[token], flag) for flag in FLAGS}}
                for number, token in new.items()
            }
        files[name] = _json(changed)
    return files


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
