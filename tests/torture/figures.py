"""What a part of the torture has done, and what it found."""

from __future__ import annotations

import contextlib
import faulthandler
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

HANG = 120  # seconds after which a single run counts as hanging


def scratch() -> Path:
    """Where merges are tortured: in memory if possible, since thousands of them write a few kilobytes each."""
    shared = Path("/dev/shm")
    return shared if shared.is_dir() else Path("/tmp")


@dataclass
class Figures:
    """The figures of one part. `losses`: what must not be, a line each."""

    part: str
    runs: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    losses: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def count(self, what: str, number: int = 1) -> None:
        self.counts[what] = self.counts.get(what, 0) + number

    def add(self, wrong: Iterable[str], again: str = "") -> None:
        """Books one run. `again`: what `--again` takes to run it again, if a name is enough for that."""
        self.runs += 1
        command = f"\n    python -m torture --again '{again}'" if again else ""
        self.losses += [problem + command for problem in wrong]

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - started

    def row(self) -> str:
        """A row of the table in docs/reliability.md."""
        counts = ", ".join(f"{number:,} {what}" for what, number in self.counts.items())
        return f"| {self.part} | {self.runs:,} | {counts} | {len(self.losses):,} | {self.seconds:,.0f} |"


TABLE = "| part | runs | of which | losses | seconds |\n|---|---|---|---|---|"


@contextlib.contextmanager
def no_hang() -> Iterator[None]:
    """Ends the process, with the stack of every thread, if the block takes too long."""
    faulthandler.dump_traceback_later(HANG, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
