"""The results of a demo: a loss for each model and domain, the time of each merge, and the verdict."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

MB = 1e6
LABEL = 18  # width of the first column


@dataclass(frozen=True)
class Row:
    """The held-out losses of one model, one per domain, in nats per byte."""

    model: str
    losses: tuple[float, ...]

    @property
    def mean(self) -> float:
        return fmean(self.losses)


@dataclass(frozen=True)
class Merge:
    """Time and bytes of one merge."""

    method: str
    seconds: float
    bytes_read: int
    bytes_written: int

    def __str__(self) -> str:
        moved = (self.bytes_read + self.bytes_written) / MB / max(self.seconds, 1e-9)
        return (
            f"{self.method:<{LABEL}}{self.seconds:8.3f} s   {self.bytes_read / MB:5.2f} MB read"
            f"   {self.bytes_written / MB:5.2f} MB written   {moved:6.0f} MB/s"
        )


@dataclass
class DemoResult:
    """The results of `warpmerge.demo.run`. The command fails unless `ok`."""

    directory: Path
    domains: tuple[str, ...]
    singles: list[Row] = field(default_factory=list)  # the base and each fine-tune
    merged: list[Row] = field(default_factory=list)
    merges: list[Merge] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)  # merged directories that do not match the base

    @property
    def best_single(self) -> Row:
        return min(self.singles, key=lambda row: row.mean)

    @property
    def best_merge(self) -> Row:
        return min(self.merged, key=lambda row: row.mean)

    @property
    def ok(self) -> bool:
        """Whether every output has the base's layout, and one merge has a lower mean loss than every single model."""
        return not self.problems and self.best_merge.mean < self.best_single.mean

    @property
    def verdict(self) -> str:
        merge, single = self.best_merge, self.best_single
        failed = "" if merge.mean < single.mean else "No merge is better than every single model. "
        return (
            f"{failed}Best merge: {merge.model}, mean loss {merge.mean:.3f}. Best single model: {single.model}, "
            f"{single.mean:.3f}."
        )

    @property
    def table(self) -> str:
        """A line per model: its loss in each domain, in nats per byte, and their mean. The best mean is marked."""
        rows = [*self.singles, *self.merged]
        best = min(rows, key=lambda row: row.mean)
        lines = [f"{'':<{LABEL}}" + "".join(f"{name:>10}" for name in (*self.domains, "mean"))]
        for row in rows:
            losses = "".join(f"{loss:10.3f}" for loss in (*row.losses, row.mean))
            lines.append(f"{row.model:<{LABEL}}{losses}" + ("  best" if row is best else ""))
        return "\n".join(lines)
