"""Small documents: JSON read strictly and within limits, JSON and YAML written so that every reader understands them.

What strangers wrote is read here. It may be large, nested deeply, or mean different things to different readers.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from array import array
from collections.abc import Callable
from typing import Any

import yaml

from .. import system
from ..errors import shown

# Most bytes of each kind of file: it is read whole, and takes many times its size in memory.
CONFIG_LIMIT = 16 << 20  # the longest have names of 20,000 classes: 1 MB
INDEX_LIMIT = 100_000_000  # that of a shard's header, which has the same names
MANIFEST_LIMIT = 256 << 20  # a million tensors
JOURNAL_LIMIT = 64 << 20  # digests of four million tensors
DEPTH = 100  # levels of nesting; a config has fewer than ten. Readers and writers of JSON and YAML recurse
DIGITS = 1000  # characters of an integer: the time to read one grows with their square

_STRINGS = re.compile(rb'"[^"]*"?')
_NO_BRACKETS = bytes(set(range(256)) - set(b'[]{}"'))
_STEPS = bytes.maketrans(b"[{]}", bytes([1, 1, 255, 255]))  # one level in, or out: -1 as a signed byte


def read_json(path: system.AnyPath, limit: int, *, constants: bool = False) -> Any:
    """The value in a JSON file of at most `limit` bytes. Raises OSError, and ValueError as `parse_json` does."""
    return parse_json(system.read_file(path, limit), constants=constants)


def _integer(text: str) -> int:
    if len(text) > DIGITS:
        raise ValueError(f"an integer of {len(text)} digits")
    return int(text)


def parse_json(raw: bytes, *, integer: Callable[[str], Any] = _integer, constants: bool = False) -> Any:
    """The value that JSON text spells.

    Args:
        raw: the text in UTF-8.
        integer: makes the value of an integer from its digits.
        constants: whether NaN and infinities are values, as in files that Python wrote.

    Returns:
        The value.

    Raises:
        ValueError: it is no JSON, is nested deeper than `DEPTH`, names a key twice, or has a number that Python does
            not hold.
    """
    if _is_deep(raw):
        raise ValueError("nested too deeply")

    def constant(text: str) -> float:
        if constants:
            return float(text)
        raise ValueError(f"{text} is not a JSON value")

    try:
        return json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_int=integer,
            parse_float=parse_float,
            parse_constant=constant,
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _is_deep(raw: bytes) -> bool:
    """Whether brackets are nested deeper than `DEPTH`. A parser that recurses that far may end the process."""
    if raw.count(b"[") + raw.count(b"{") <= DEPTH:
        return False
    text = raw.replace(b"\\\\", b"").replace(b'\\"', b"")  # so that each quotation mark opens or closes a string
    brackets = _STRINGS.sub(b"", text.translate(None, _NO_BRACKETS).replace(b'""', b""))
    return max(itertools.accumulate(array("b", brackets.translate(_STEPS))), default=0) > DEPTH


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"it names {shown(name)} twice")
            seen.add(name)
    return result


def parse_float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {shown(text)} is too large")
    return value


class _Dumper(yaml.SafeDumper):
    """Writes line breaks of texts as escapes, so that no line of a text can be taken for something else."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')


_Dumper.add_representer(str, _text)


def yaml_text(document: Any, *, flow: bool | None = False, width: float = math.inf) -> str:
    """A document of plain values as YAML. Characters that are not printable are written as escapes.

    Args:
        document: values that JSON can hold.
        flow: whether lists and mappings are written in one line; None: the innermost ones.
        width: characters after which a line is broken where it can be.
    """

    def dumped(unicode: bool) -> str:
        return yaml.dump(
            document,
            Dumper=_Dumper,
            sort_keys=False,
            allow_unicode=unicode,
            default_flow_style=flow,
            width=width,
        )

    text = dumped(True)
    return text if all(map(str.isprintable, text.split("\n"))) else dumped(False)
