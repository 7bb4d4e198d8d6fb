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
    """`file`: what is hostile, from the folder. `refused`: texts of the error message; None: the result is right."""

    target: str
    name: str
    file: str
    make: Callable[[Path], None]
    refused: tuple[str, ...] | None

    def __str__(self) -> str:
        return f"{self.target}: {self.name}"


ATTACKS: dict[str, Attack] = {}


def attack(target: str, name: str, file: str, content: bytes | str | Callable[[Path], None], *refused: str) -> None:
    """Registers an attack: the content of a file, or a maker. Without texts of a message the result must be right."""

    def write(folder: Path) -> None:
        data = content if isinstance(content, bytes) else content.encode(errors="surrogatepass")  # type: ignore[union-attr]
        (folder / file).write_bytes(data)

    made = Attack(target, name, file, content if callable(content) else write, refused or None)
    assert str(made) not in ATTACKS, made
    ATTACKS[str(made)] = made
