"""What an attack is, and the promise that holds for all of them.

An attack is a maker: it puts a hostile file into a folder in which a merge could run. `TARGETS` says what a user then
does with that folder. Either the result is right, or the user sees one of our errors, which names the hostile file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Attack:
    """`file`: what is hostile, from the folder. `content`: what it holds, if that is always the same. `refused`: texts
    of the error message; None: the result is right."""

    target: str
    name: str
    file: str
    content: bytes | None
    make: Callable[[Path], None]
    refused: tuple[str, ...] | None

    def __str__(self) -> str:
        return f"{self.target}: {self.name}"


ATTACKS: dict[str, Attack] = {}


def attack(target: str, name: str, file: str, content: bytes | str | Callable[[Path], None], *refused: str) -> None:
    """Registers an attack: the content of a file, or a maker. Without texts of a message the result must be right."""

    if callable(content):
        data, make = None, content
    else:
        data = content if isinstance(content, bytes) else content.encode(errors="surrogatepass")
        make = _writer(file, data)
    made = Attack(target, name, file, data, make, refused or None)
    assert str(made) not in ATTACKS, made
    ATTACKS[str(made)] = made


def _writer(file: str, data: bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / file).write_bytes(data)

    return write
