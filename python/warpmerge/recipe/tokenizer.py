"""The keys of a recipe that choose the tokenizer of the output: `tokenizer_source`, `tokenizer` and `chat_template`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from .. import system
from ..errors import UsageError, close_matches, shown
from ..models.reference import ModelRef
from .references import model_ref

BASE, UNION = "base", "union"
KEYS = ("source", "tokens", "pad_to_multiple_of")
TOKEN_KEYS = ("source", "force")
KINDS = {"zero": ("kind",), "model_token": ("kind", "model", "token", "token_id"), "none": ("kind",)}
LARGEST_MULTIPLE = 1 << 20
TEMPLATES = ("alpaca", "chatml", "exaone", "llama3", "mistral")  # of vocabulary.templates
AUTO = "auto"
SHORTEST = 20  # characters of a template that is written out
TEMPLATE_LIMIT = 16 << 20  # bytes of a template's file
TEMPLATE_SUFFIXES = (".jinja", ".jinja2", ".j2")  # no recipe puts other files of this machine into an output


@dataclass(frozen=True)
class TokenRow:
    """Where the row of a token comes from in the models that lack the token.

    Attributes:
        model: the model whose row it is. None: zeros, or with `needs_source` nothing that the recipe says.
        other: the text of another token of that model, or the number of a row. None: the token itself.
        force: whether it replaces the rows of the models that have the token.
        needs_source: whether the recipe names no source.
    """

    model: ModelRef | None = None
    other: str | int | None = None
    force: bool = False
    needs_source: bool = False


@dataclass(frozen=True)
class Tokenizer:
    """The tokenizer of the output.

    Attributes:
        source: BASE, UNION or a model.
        tokens: by token what `tokens` says of it.
        multiple: the number of rows is a multiple of this.
    """

    source: ModelRef | str
    tokens: Mapping[str, TokenRow]
    multiple: int = 1

    @property
    def models(self) -> tuple[ModelRef, ...]:
        """The models that the key names."""
        named = [self.source, *(row.model for row in self.tokens.values())]
        return tuple(dict.fromkeys(ref for ref in named if isinstance(ref, ModelRef)))

    def located(self, there: Callable[[ModelRef], ModelRef]) -> Tokenizer:
        """With other references in place of its own."""
        source = there(self.source) if isinstance(self.source, ModelRef) else self.source
        tokens = {
            token: row if row.model is None else dataclasses.replace(row, model=there(row.model))
            for token, row in self.tokens.items()
        }
        return dataclasses.replace(self, source=source, tokens=tokens)


@dataclass(frozen=True)
class ChatTemplate:
    """The chat template of the output: AUTO or the name of a known one, else `text`."""

    name: str | None
    text: str = ""


Noting = Callable[[], AbstractContextManager[None]]  # keeps what is wrong in its block


def read_tokenizer(document: Mapping[str, Any], where: str, noting: Noting) -> Tokenizer | None:
    """What the document says of the tokenizer; None: nothing. Faults are raised within `noting()`."""
    short, long = document.get("tokenizer_source"), document.get("tokenizer")
    with noting():
        if short is not None and long is not None:
            raise UsageError(f"{where}: give one of 'tokenizer_source' and 'tokenizer', not both.")
        if short is not None:
            return Tokenizer(_source(short, f"{where}: tokenizer_source"), {})
        if long is not None:
            return _read(long, f"{where}: tokenizer", noting)
    return None


def _read(block: Any, where: str, noting: Noting) -> Tokenizer:
    if not isinstance(block, Mapping):
        raise UsageError(f"{where}: must be a mapping with the keys {', '.join(KEYS)}, got {shown(block)}.")
    source: ModelRef | str = UNION
    tokens: dict[str, TokenRow] = {}
    multiple = 1
    with noting():
        _check_keys(block, KEYS, where)
    with noting():
        if block.get("source") is not None:
            source = _source(block["source"], f"{where}: source")
    with noting():
        multiple = _multiple(block.get("pad_to_multiple_of"), f"{where}: pad_to_multiple_of")
    listed = block.get("tokens")
    with noting():
        if listed is not None and not isinstance(listed, Mapping):
            raise UsageError(f"{where}: tokens: must be a mapping from tokens to their sources, got {shown(listed)}.")
        for token, entry in (listed or {}).items():
            with noting():
                tokens[token] = _token(entry, f"{where}: tokens: {shown(token)}")
    return Tokenizer(source, tokens, multiple)


def _source(value: Any, where: str) -> ModelRef | str:
    return value if value in (BASE, UNION) else model_ref(value, where)


def _multiple(value: Any, where: str) -> int:
    if value is None:
        return 1
    number = int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value
    if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= LARGEST_MULTIPLE:
        raise UsageError(f"{where}: must be a whole number from 1 to {LARGEST_MULTIPLE}, got {shown(value)}.")
    return number


def _token(entry: Any, where: str) -> TokenRow:
    if not isinstance(entry, Mapping):
        raise UsageError(f"{where}: must be a mapping with the keys {', '.join(TOKEN_KEYS)}, got {shown(entry)}.")
    _check_keys(entry, TOKEN_KEYS, where)
    force = entry.get("force")
    if force is not None and not isinstance(force, bool):
        raise UsageError(f"{where}: force: must be true or false, got {shown(force)}.")
    model, other, given = _row(entry.get("source"), f"{where}: source")
    if force and not given:
        raise UsageError(f"{where}: 'force' needs a 'source'.")
    return TokenRow(model, other, bool(force), not given)


def _row(value: Any, where: str) -> tuple[ModelRef | None, str | int | None, bool]:
    """The model and the other token or row that a source names, and whether it names any."""
    if value is None:
        return None, None, False
    if not isinstance(value, Mapping) or "kind" not in value:
        return model_ref(value, where), None, True
    kind = value["kind"]
    if not isinstance(kind, str) or kind not in KINDS:
        raise UsageError(f"{where}: kind: must be {' or '.join(KINDS)}, got {shown(kind)}.")
    _check_keys(value, KINDS[kind], where)
    if kind == "none":
        return None, None, False
    if kind == "zero":
        return None, None, True
    token, number = value.get("token"), value.get("token_id")
    if (token is None) == (number is None):
        raise UsageError(f"{where}: give one of 'token' and 'token_id'.")
    if token is not None and not isinstance(token, str):
        raise UsageError(f"{where}: token: must be text, got {shown(token)}; put it in quotes.")
    if number is not None and (not isinstance(number, int) or isinstance(number, bool) or number < 0):
        raise UsageError(f"{where}: token_id: must be the number of a row, got {shown(number)}.")
    return model_ref(value.get("model"), f"{where}: model"), token if token is not None else number, True


def _check_keys(block: Mapping[str, Any], keys: tuple[str, ...], where: str) -> None:
    for key in block:
        if key not in keys:
            near = close_matches(key, keys)
            raise UsageError(f"{where}: unknown key {shown(key)}{near or '.'} Keys: {', '.join(keys)}.")


def read_template(document: Mapping[str, Any], where: str) -> ChatTemplate | None:
    """What the document says of the chat template; None: nothing. Raises UsageError."""
    value, where = document.get("chat_template"), f"{where}: chat_template"
    if value is None:
        return None
    if not isinstance(value, str):
        raise UsageError(f"{where}: must be text, got {shown(value)}.")
    if value in (AUTO, *TEMPLATES):
        return ChatTemplate(value)
    if "{" in value and len(value) >= SHORTEST:
        return ChatTemplate(None, _checked(value, where))
    path = os.path.expanduser(value)
    if path.endswith(TEMPLATE_SUFFIXES) and system.is_file(path):
        try:
            text = system.read_file(path, TEMPLATE_LIMIT).decode()
        except (OSError, ValueError) as error:
            raise UsageError(f"{where}: cannot read {value}: {error}.") from None
        return ChatTemplate(None, _checked(text, where))
    near = close_matches(value, [AUTO, *TEMPLATES])
    raise UsageError(
        f"{where}: {shown(value)} is no template{near or '.'} Write {AUTO}, {', '.join(TEMPLATES)}, the path of a "
        f".jinja file, or a Jinja template of at least {SHORTEST} characters."
    )


def _checked(text: str, where: str) -> str:
    """The template, if Jinja can read it. Without Jinja every text is taken."""
    try:
        import jinja2
        from jinja2.ext import Extension
    except ImportError:
        return text

    class Generation(Extension):
        """transformers' block, whose content it marks."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(["name:endgeneration"], drop_needle=True)

    try:
        jinja2.Environment(extensions=["jinja2.ext.loopcontrols", Generation]).parse(text)
    except jinja2.TemplateSyntaxError as error:
        raise UsageError(f"{where}: not a Jinja template: {error.message}, in line {error.lineno}.") from None
    return text
