"""Three kinds of text that every Python installation has: prose, source code, and the Unicode database."""

from __future__ import annotations

import hashlib
import random
import sysconfig
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

from ..errors import MergeError

SIZE = 400_000  # bytes per domain: a fine-tune reads 150 kB
BLOCK = 2_048  # the unit of the split between training and held-out text
HELD_OUT = 8  # blocks per domain, spread evenly over its text
ENOUGH = 50_000  # bytes of training text; an installation without its sources has less


@dataclass(frozen=True)
class Domain:
    """One kind of text, split into a part for training and a held-out part for evaluation."""

    name: str
    train: bytes
    held_out: bytes


def prose() -> str:
    """Paragraphs of the language reference, as in `help()`, without examples and grammar."""
    from pydoc_data.topics import topics

    paragraphs = (dedent(p) for _, text in sorted(topics.items()) for p in text.split("\n\n"))
    wanted = (p for p in paragraphs if p[:1].isupper() and p.endswith(".") and "\n  " not in p)
    return "\n\n".join(dict.fromkeys(wanted))  # topics share paragraphs: each is taken once


def source() -> str:
    """Modules of the standard library, in an order that mixes their subjects."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("[a-z]*.py"))
    random.Random(0).shuffle(files)
    parts: list[str] = []
    size = 0
    for file in files:
        if size < 2 * SIZE:
            parts.append(file.read_text(encoding="utf-8", errors="replace"))
            size += len(parts[-1])
    return "\n".join(parts)


def characters() -> str:
    """The Unicode character database, in the form of its `UnicodeData.txt`."""
    records = []
    for code in range(0x20000):
        char = chr(code)
        name = unicodedata.name(char, "")
        if not name or name.startswith(("CJK", "HANGUL SYLLABLE")):  # their names follow a rule
            continue
        fields = (
            f"{code:04X}",
            name,
            unicodedata.category(char),
            str(unicodedata.combining(char)),
            unicodedata.bidirectional(char),
            unicodedata.decomposition(char),
            "Y" if unicodedata.mirrored(char) else "N",
        )
        records.append(";".join(fields))
    return "\n".join(records)


READERS = {"prose": prose, "source": source, "unicode": characters}


def load() -> list[Domain]:
    """The domains, each cut to one size and split block by block."""
    domains = [split(name, read()) for name, read in READERS.items()]
    for domain in domains:
        if len(domain.train) < ENOUGH:
            raise MergeError(
                f"the demo needs a full standard library: there is too little {domain.name} text in this one; use "
                "another Python."
            )
    return domains


def split(name: str, text: str) -> Domain:
    data = text.encode()[:SIZE]
    blocks = [data[i : i + BLOCK] for i in range(0, len(data), BLOCK)]
    stride = max(1, len(blocks) // HELD_OUT)
    held_out = range(stride - 1, len(blocks), stride)[:HELD_OUT]
    train = b"".join(block for i, block in enumerate(blocks) if i not in held_out)
    return Domain(name, train, b"".join(blocks[i] for i in held_out))


def digest(domains: list[Domain]) -> str:
    """A fingerprint of the text. Text and models differ between versions of Python."""
    state = hashlib.sha256()
    for domain in domains:
        state.update(domain.train + domain.held_out)
    return state.hexdigest()[:16]
