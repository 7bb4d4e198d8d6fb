"""Damages JSON documents where it hurts: in their structure, in the spelling of their values, and in their bytes.

All choices come from a `random.Random`, so a seed makes a document again. hypothesis hands one out as well, and
then finds a smaller document that fails (tests/fuzz/test_fuzz.py).
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any, NamedTuple


class Spelled(NamedTuple):
    """A value by its text, which may be no JSON."""

    text: str


class Pairs(list):
    """An object's keys and values: the keys may repeat."""


NUMBERS = [
    *("0", "1", "2", "3", "4", "8", "-1", "-0", "00", "01", "1.0", "1e3", "1E0", "1e999", "-1e999", "0x1", "+1"),
    *(str(2**n + d) for n in (8, 16, 31, 32, 61, 62, 63, 64, 65) for d in (-1, 0, 1)),
    *(
        "9" * 17,
        "9" * 18,
        "9" * 19,
        "9" * 20,
        "9" * 21,
        "9" * 400,
        "9" * 5000,
        "1e-5000",
        "NaN",
        "Infinity",
        "-Infinity",
    ),
]
WORDS = ["null", "true", "false", "[]", "{}", '""', "nul", "'a'", "", "[[]]", "[{}]", '{"":{}}', "[" * 300 + "]" * 300]
TEXTS = [
    *("", " ", "a", "t", "U8", "F32", "BF16", "F4", "dtype", "shape", "data_offsets", "__metadata__", "weight_map"),
    *(
        "..",
        ".",
        "/",
        "../x",
        "/etc/passwd",
        "a/b",
        "\0",
        "a\0b",
        "\x01",
        "\x7f",
        "\x1b[2J",
        "\n",
        "\\",
        '"',
        "é",
        "🦊",
    ),
    *("\u202e", "\ufeff", "\ud800", "\udfff\ud800", "\ud83e\udd8a", "x" * 300, "__class__", "float32", "0" * 16),
]
BYTES = [
    *(
        b"",
        b"\0",
        b" ",
        b"\n",
        b"\\",
        b'"',
        b"'",
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b"-",
        b"+",
        b".",
        b"e",
        b"0",
        b"9",
    ),
    *(b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xf4\x90\x80\x80", b"\\u0000", b"\\ud800", b"\\u005f"),
    *(b"//", b"/**/", b"NaN", b"[" * 200, b'{"a":' * 200, b"&a ", b"*a", b"!!", b"<<", b"? ", b"--- ", b"%"),
]


def tree(document: Any) -> Any:
    """A document with its objects as `Pairs`."""
    if isinstance(document, dict):
        return Pairs((key, tree(value)) for key, value in document.items())
    return [tree(value) for value in document] if isinstance(document, list) else document


def parsed(text: bytes) -> Any:
    """The tree of a JSON text; ValueError or RecursionError if it is none."""
    return json.loads(text, object_pairs_hook=Pairs)


def written(node: Any, rng: random.Random) -> bytes:
    """The text of a tree: escaped or not, with spaces or without."""
    ascii_only, spaces = rng.random() < 0.5, rng.choice(["", "", " ", "\n\t"])

    def parts(node: Any) -> Iterator[str]:
        if isinstance(node, Spelled):
            yield node.text
        elif isinstance(node, list):
            opened, closed = "{}" if isinstance(node, Pairs) else "[]"
            yield opened
            for number, item in enumerate(node):
                if number:
                    yield "," + spaces
                if isinstance(node, Pairs):
                    yield from parts(item[0])
                    yield ":" + spaces
                    item = item[1]
                yield from parts(item)
            yield closed
        else:
            yield json.dumps(node, ensure_ascii=ascii_only)

    return "".join(parts(node)).encode(errors="surrogatepass")


def places(node: Any) -> list[tuple[list, int]]:
    """Every item of every list and object of a tree, as the list and a number."""
    found, pending = [], [node]
    while pending:
        parent = pending.pop()
        for number, item in enumerate(parent):
            found.append((parent, number))
            child = item[1] if isinstance(parent, Pairs) else item
            if isinstance(child, list):
                pending.append(child)
    return found


def hostile(rng: random.Random, old: Any) -> Any:
    """A value to put in place of `old`: mostly of its own kind."""
    kind = rng.randrange(8)
    if kind < 3 and isinstance(old, int) and not isinstance(old, bool):
        return old + rng.choice([-8, -4, -1, 1, 4, 8])
    if kind < 5:
        return rng.choice(TEXTS) if isinstance(old, str) else Spelled(rng.choice(NUMBERS))
    return Spelled(rng.choice(WORDS)) if kind < 7 else rng.choice(TEXTS)


def damage_tree(node: Any, rng: random.Random) -> None:
    """Changes one place of a tree."""
    found = places(node)
    if not found:
        return
    parent, number = rng.choice(found)
    other_parent, other = rng.choice(found)
    item = parent[number]
    is_pair = isinstance(parent, Pairs)
    action = rng.randrange(7)
    if action == 0:
        del parent[number]
    elif action == 1:
        parent.insert(rng.randrange(len(parent) + 1), item)  # twice
    elif action == 2 and is_pair:
        parent[number] = (rng.choice(TEXTS), item[1])
    elif action == 3 and isinstance(other_parent, Pairs) == is_pair:
        parent[number] = copy.deepcopy(other_parent[other])
    elif action == 4:
        value = hostile(rng, None)
        parent.insert(number, (rng.choice(TEXTS), value) if is_pair else value)
    else:
        parent[number] = (item[0], hostile(rng, item[1])) if is_pair else hostile(rng, item)


def damage_bytes(data: bytes, rng: random.Random) -> bytes:
    """Replaces some bytes at one place, or cuts the data there."""
    place = rng.randrange(len(data) + 1)
    kind = rng.randrange(8)
    if kind == 0:
        return data[:place]
    if kind == 1 and place < len(data):
        return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]
    return data[:place] + rng.choice(BYTES) + data[place + rng.randrange(3) :]


def damaged(document: Any, rng: random.Random) -> bytes:
    """The text of a document after up to three changes of its structure and, now and then, of its bytes."""
    node = tree(document) if not isinstance(document, Pairs) else document
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
        if isinstance(node, list):
            damage_tree(node, rng)
    data = written(node, rng)
    for _ in range(rng.choice([0, 0, 0, 1, 2])):
        data = damage_bytes(data, rng)
    return data
