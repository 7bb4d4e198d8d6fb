"""What a section of the measurements is given: sizes, a clock, a deadline, and where its rows go.

Sizes (`sizes`) and clocks come in two sets, for a GPU and for the smoke test; the sections do not know which they have.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..figures import spread
from .sizes import Sizes

Row = dict[str, Any]
Call = Callable[[], Any]
CYCLES_PER_SECOND = 2_000_000_000  # of a GPU's clock, roughly: only how long it is kept waiting depends on it


class EventClock:
    """Times what is queued on torch's current stream by CUDA events."""

    name = "CUDA events"

    def warm_up(self, call: Call) -> None:
        call()
        torch.cuda.synchronize()

    def queued(self, call: Call, repetitions: int) -> list[float]:
        """Seconds on the device, without the host's: it is kept busy until everything is queued behind that."""
        self.warm_up(call)
        start = time.perf_counter()
        call()
        host = time.perf_counter() - start
        pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repetitions)]
        torch.cuda.synchronize()
        torch.cuda._sleep(int(min(0.2, 2 * host * repetitions) * CYCLES_PER_SECOND))
        for before, after in pairs:
            before.record()
            call()
            after.record()
        torch.cuda.synchronize()
        return [before.elapsed_time(after) / 1e3 for before, after in pairs]

    def whole(self, call: Call, repetitions: int) -> list[float]:
        """Seconds until the device is done, the host's work included."""
        self.warm_up(call)
        return _wall(call, repetitions, torch.cuda.synchronize)


class WallClock:
    """Times what has happened when a call returns, and does not warm up: for a smoke test."""

    name = "wall clock"

    def warm_up(self, call: Call) -> None: ...

    def queued(self, call: Call, repetitions: int) -> list[float]:
        return _wall(call, repetitions, lambda: None)

    whole = queued


def _wall(call: Call, repetitions: int, synchronize: Call) -> list[float]:
    seconds = []
    for _ in range(repetitions):
        start = time.perf_counter()
        call()
        synchronize()
        seconds.append(time.perf_counter() - start)
    return seconds


class OutOfTime(Exception):
    """The section's time is up: what was measured counts, the rest is missing."""


@dataclass
class Bench:
    """`backend`: whose kernels are measured; `device`: where its tensors are."""

    backend: str
    device: torch.device
    sizes: Sizes
    clock: EventClock | WallClock
    deadline: float  # of time.monotonic
    write: Callable[[Row], None]

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def check_time(self) -> None:
        if time.monotonic() > self.deadline:
            raise OutOfTime

    def row(self, group: str, what: str, seconds: Sequence[float] | None = None, **more: Any) -> Row:
        """Writes a row. What is None is left out."""
        label = [group, more.get("kernel"), what, more.get("dtype"), more.get("models"), self.backend]
        row: Row = {"id": " ".join(str(part) for part in label if part), "group": group, "what": what or None}
        row |= {"backend": self.backend, "clock": self.clock.name}
        if seconds is not None:
            row["seconds"] = spread(seconds) | {"rounds": len(seconds)}
        row |= {name: value for name, value in more.items() if value is not None}
        self.write(row)
        return row

    def missing(self, group: str, what: str, reason: str, **more: Any) -> None:
        """A row for what cannot be measured here."""
        self.row(group, what, note=f"not measured: {reason}", **more)


def make_clock(device: torch.device) -> EventClock | WallClock:
    return EventClock() if device.type == "cuda" else WallClock()


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# --- roofs ----------------------------------------------------------------------------------------------------------


class CopyRoof:
    """The fastest way to move bytes in device memory: half of them read, half of them written."""

    def __init__(self, bench: Bench) -> None:
        self._clock = bench.clock
        half = bench.sizes.copy_bytes // 4
        self._source = torch.ones(half, dtype=torch.float32, device=bench.device)
        self._target = torch.empty_like(self._source)

    @property
    def nbytes(self) -> int:
        return 2 * 4 * self._source.numel()

    def ways(self) -> dict[str, Call]:
        source, target = self._source, self._target
        return {
            "cudaMemcpyAsync, device to device": lambda: target.copy_(source),
            "a kernel that reads and writes (torch.add)": lambda: torch.add(source, 1.0, out=target),
        }

    def seconds(self, repetitions: int) -> dict[str, list[float]]:
        return {name: self._clock.queued(way, repetitions) for name, way in self.ways().items()}

    def rate(self, repetitions: int = 8) -> float:
        """GB/s of the fastest way, read and written bytes together."""
        return self.nbytes / min(statistics.median(s) for s in self.seconds(repetitions).values()) / 1e9
