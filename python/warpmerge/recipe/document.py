"""The document of a recipe: YAML, or values of Python callers, as plain values: text, numbers, lists, mappings.

No object is made from YAML, and no document is read that takes more time or memory than a recipe can need.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from .. import system
from ..errors import UsageError, shown
from ..models.documents import DEPTH, DIGITS

LIMIT = 16 << 20  # bytes of a file: 100,000 models with parameters of their own have 10 MB
VALUES = 1_000_000  # in a document, those that aliases repeat included: ten for each of so many models
_KINDS = ("null", "bool", "int", "float", "str", "seq", "map")
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_MERGE = "tag:yaml.org,2002:merge"  # the key `<<`


def read(path: Path) -> list[Any]:
    """The documents in a YAML file.

    Args:
        path: a regular file.

    Returns:
        Each as text, numbers, booleans, None, lists and mappings; an empty file has one, None.

    Raises:
        UsageError: it cannot be read, or is no YAML. The message names file and line.
    """
    try:
        text = system.read_file(path, LIMIT).decode("utf-8")
    except OSError as error:
        raise UsageError(f"cannot read the recipe {path}: {error.strerror or error}.") from None
    except ValueError:
        raise UsageError(f"cannot read the recipe {path}: not a text file.") from None
    try:
        return list(yaml.load_all(text, Loader=_Loader)) or [None]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = " ".join(part for part in (error.context, error.problem) if part)
        raise UsageError(f"{path}{place}: not valid YAML: {problem}.") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UsageError(f"{path}, line {line}: not valid YAML: a character that YAML does not allow.") from None
    except RecursionError:
        raise UsageError(f"{path}: nested too deeply.") from None
    except (ValueError, OverflowError):  # of PyYAML's scanner: the escape of a character that there is not
        raise UsageError(f"{path}: not valid YAML: an escape stands for no character.") from None


class _Loader(yaml.SafeLoader):
    """Refuses a key given twice: YAML would keep the last. Reads 1e-5 as a number, as YAML 1.2 does, and dates as text.

    Aliases count as often as they repeat something: a short text can stand for 10^10 values.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._deepest = self._values = 0
        self._measures: dict[int, tuple[int, int]] = {}  # values and levels, by the identity of a node

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        values, deepest = self._values, self._deepest
        self._depth += 1
        self._deepest = self._depth
        self._values += 1
        self._check(event)
        node = super().compose_node(parent, index)
        alias = isinstance(event, yaml.AliasEvent)
        if alias:
            if id(node) not in self._measures:
                raise yaml.composer.ComposerError(problem="it contains itself", problem_mark=event.start_mark)
            repeated, levels = self._measures[id(node)]
            self._values += repeated
            self._deepest += levels
            self._check(event)
        else:
            self._measures[id(node)] = self._values - values, self._deepest - self._depth
        self._deepest = max(deepest, self._deepest)
        self._depth -= 1
        return node

    def _check(self, event: Any) -> None:
        problem = ""
        if self._deepest > DEPTH:
            problem = "nested too deeply"
        elif self._values > VALUES:
            problem = f"more than {VALUES:,} values"
        if problem:
            raise yaml.composer.ComposerError(problem=problem, problem_mark=event.start_mark)

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE:
                if key.value in seen:
                    raise yaml.composer.ComposerError(
                        problem=f"the key {shown(key.value)} is given twice", problem_mark=key.start_mark
                    )
                seen.add(key.value)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        text = node.value if isinstance(node, yaml.ScalarNode) else ""
        problem = ""
        if node.tag in _NUMBERS and len(text) > DIGITS:  # the time to read one grows with the square of its length
            problem = f"a number of {len(text):,} digits"
        else:
            try:
                return super().construct_object(node, deep)
            except (ValueError, LookupError, ArithmeticError):  # by its tag a number or a boolean
                problem = f"{shown(text)} is not a value of the type {node.tag}"
        raise yaml.constructor.ConstructorError(problem=problem, problem_mark=node.start_mark)

    def _unknown(self, node: yaml.Node) -> Any:
        problem = f"the tag {shown(node.tag)}; a recipe has text, numbers, lists and mappings"
        raise yaml.constructor.ConstructorError(problem=problem, problem_mark=node.start_mark)


_TAGS = [f"tag:yaml.org,2002:{kind}" for kind in _KINDS]
_Loader.yaml_constructors = {tag: yaml.SafeLoader.yaml_constructors[tag] for tag in _TAGS} | {None: _Loader._unknown}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag in (*_TAGS, _MERGE)]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def plain(document: Any, where: str) -> Any:
    """A document with plain values only; Python callers have tuples, paths, numbers of numpy, dtypes of torch.

    Args:
        document: the document. It may hold one value in several places.
        where: the beginning of messages.

    Returns:
        A copy of text, numbers, booleans, None, lists and mappings.

    Raises:
        UsageError: it is too large, contains itself, or has a key that is no text.
    """
    return _plain(document, where, 0, iter(range(VALUES)))


def _plain(value: Any, where: str, depth: int, left: Iterator[int]) -> Any:
    if depth > DEPTH:
        raise UsageError(f"{where}: it contains itself or is nested too deeply.")
    if next(left, None) is None:
        raise UsageError(f"{where}: it has more than {VALUES:,} values.")
    if isinstance(value, Mapping):
        return {_key(k, where): _plain(v, where, depth + 1, left) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v, where, depth + 1, left) for v in value]
    if isinstance(value, type):
        return value.__name__
    if hasattr(value, "tolist"):
        return _plain(value.tolist(), where, depth + 1, left)
    return _scalar(value, where)


def _key(key: Any, where: str) -> str:
    if not isinstance(key, str):
        raise UsageError(f"{where}: the key {shown(key)} is no text; put it in quotes.")
    return str(key)


def _scalar(value: Any, where: str) -> Any:
    if isinstance(value, int) and value.bit_length() > 3 * DIGITS:
        raise UsageError(f"{where}: {shown(value)} is too large a number.")
    for kind in (bool, int, float):
        if isinstance(value, kind):
            return kind(value)
    return None if value is None else os.fsdecode(value) if isinstance(value, os.PathLike) else str(value)
