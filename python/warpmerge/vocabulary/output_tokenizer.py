"""The tokenizer of the output: whose it is, which tokens it gains and loses, and its files."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from ..models.names import ADDED_TOKENS, SPECIAL_TOKENS, TOKENIZER, TOKENIZER_CONFIG, is_vocabulary
from ..models.reference import ModelRef
from ..models.sidecars import Content
from ..recipe.tokenizer import UNION, Tokenizer
from .model_tokenizer import ModelTokenizer, document, flags, token_text
from .tokenizer_json import Token, TokenizerJson, json_bytes


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
        json: its tokenizer.json.
        files: by name.
        notices: what users should know, a sentence each.
    """

    donor: Member
    json: TokenizerJson
    files: Mapping[str, Content]
    notices: tuple[str, ...]


def output_tokenizer(choice: Tokenizer, members: Sequence[Member]) -> OutputTokenizer:
    """What `choice` makes of the members' tokenizers; the first member is the base."""
    donor = next((m for m in members if m.ref == choice.source), members[0])
    notices: list[str] = []
    beyond: list[Token] = []
    theirs = donor.tokenizer.ids
    # A model that the recipe names is taken as it is.
    if not isinstance(choice.source, ModelRef) and donor.rows is not None and len(theirs) > donor.rows:
        beyond = [token for token, number in theirs.items() if number >= donor.rows]
        notices.append(
            f"the tokenizer of {donor.tokenizer.title} has {len(beyond)} tokens beyond the {donor.rows} rows of its "
            f"embedding, such as {str(beyond[-1])!r}: they are left out."
        )
    lost = set(beyond)
    known = theirs.keys() - lost if lost else theirs.keys()
    new: dict[str, Mapping[str, Any]] = {}
    if choice.source == UNION:
        new = dict(_gained(members, known, donor.tokenizer.json.vocabulary if not lost else None))
        notices += _differing(members)
    for token in choice.tokens:
        if token not in known and token not in new:
            new[token] = flags(False)
    if not lost and not new:
        return OutputTokenizer(donor, donor.tokenizer.json, donor.tokenizer.files, tuple(notices))
    made = donor.tokenizer.json.changed(lost, new)
    return OutputTokenizer(donor, made, _files(donor.tokenizer, made, lost, new), tuple(notices))


def _gained(
    members: Sequence[Member], known: Set[Token], vocabulary: Mapping[Token, int] | None
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The tokens that the base lacks: first the ordinary ones of each model, then the added ones, by model and id.
    Of a model with the same `vocabulary` only the added ones are looked at."""
    found: dict[str, Member] = {}
    for member in members:
        ids, theirs = member.tokenizer.ids, member.tokenizer.json.vocabulary
        tokens: Collection[Token] = list(member.tokenizer.added) if theirs is vocabulary else ids
        for token in sorted([token for token in tokens if token not in known], key=ids.__getitem__):
            if isinstance(token, str) and member.rows is not None and member.has(token):
                found.setdefault(token, member)
    added = {token for token, member in found.items() if token in member.tokenizer.added}
    yield from ((token, flags(False)) for token in found if token not in added)
    yield from ((token, found[token].tokenizer.added[token]) for token in found if token in added)


def _differing(members: Sequence[Member]) -> Iterator[str]:
    """What is to be said of added tokens that have other flags in another model."""
    first: dict[str, Mapping[str, Any]] = {}
    differing: dict[str, None] = {}
    for member in members:
        for token, own in member.tokenizer.added.items():
            if first.setdefault(token, own) != own:
                differing[token] = None
    for token in differing:
        yield f"the models have the token {token!r} with different flags; those of the first one hold."


def _files(
    donor: ModelTokenizer, made: TokenizerJson, lost: set[Token], new: Mapping[str, Mapping[str, Any]]
) -> dict[str, Content]:
    """The donor's files with tokens lost and gained. Vocabularies in other forms than tokenizer.json go if tokens went:
    no library edits them."""
    files = {name: file for name, file in donor.files.items() if not (lost and is_vocabulary(name))}
    files[TOKENIZER] = made.text()
    for name in {TOKENIZER_CONFIG, SPECIAL_TOKENS, ADDED_TOKENS} & files.keys():
        found = document(files[name], name)
        if name == ADDED_TOKENS:
            kept = {token: number for token, number in found.items() if token not in lost}
            files[name] = json_bytes(kept | {token: made.ids[token] for token in new})
            continue
        changed = {key: value for key, value in found.items() if token_text(value) not in lost}
        for key in ("additional_special_tokens", "extra_special_tokens"):
            if isinstance(changed.get(key), list):
                changed[key] = [value for value in changed[key] if token_text(value) not in lost]
        decoder = changed.get("added_tokens_decoder")
        if isinstance(decoder, dict):
            kept = {number: entry for number, entry in decoder.items() if token_text(entry) not in lost}
            listed = {str(made.ids[token]): {"content": token, **own} for token, own in new.items()}
            changed["added_tokens_decoder"] = kept | listed
        files[name] = json_bytes(changed)
    return files
