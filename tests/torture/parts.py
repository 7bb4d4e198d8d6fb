"""The parts of the torture: what each runs, and how much of it. A part has its own figures and its own randomness."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from torture import faults, interrupts, limits, power, processes, repetition, scale
from torture.figures import Figures
from torture.merges import SCENARIOS, Scenario, Workplace, workplace


@dataclass(frozen=True)
class Size:
    """How much is run. `most`: faults of each merge, drawn at random; None: all of them."""

    most: int | None = None
    stories: int = 2000  # power losses of each merge
    kills: int = 300
    system_calls: int | None = None
    interrupts: int = 1000  # single ones, and as many double ones
    merges: int = 1000  # in one process
    few: int = 1000  # shards and models, of which there are then four and ten times as many


@dataclass(frozen=True)
class Run:
    """One run of one part."""

    figures: Figures
    folder: Path
    seed: int
    size: Size

    @property
    def rng(self) -> random.Random:
        return random.Random(f"{self.figures.part}/{self.seed}")

    def each(self, work: Callable[[Workplace], None], scenarios: Iterable[Scenario] = SCENARIOS) -> None:
        for scenario in scenarios:
            with workplace(scenario, self.folder) as place:
                work(place)


def _faults(run: Run) -> None:
    run.each(lambda place: faults.fail_every_call(place, run.figures, run.rng, run.size.most))


def _kills(run: Run) -> None:
    run.each(lambda place: faults.kill_at_every_call(place, run.figures, run.rng, run.size.most))


def _power(run: Run) -> None:
    run.each(lambda place: power.lose_power(place, run.figures, run.seed, run.size.stories))


def _random_kills(run: Run) -> None:
    share = -(-run.size.kills // len(SCENARIOS))
    run.each(lambda place: processes.kill_at_random(place, run.figures, run.rng, share))


def _system_calls(run: Run) -> None:
    run.each(
        lambda place: processes.kill_at_system_calls(place, run.figures, run.rng, run.size.system_calls),
        SCENARIOS[:3:2],
    )


def _interrupts(run: Run) -> None:
    interrupts.campaign(run.folder / "interrupts", run.figures, run.seed, run.size.interrupts)


def _limits(run: Run) -> None:
    figures, rng = run.figures, run.rng
    limits.address_space(run.folder / "memory", figures, [1, 4, 8, 16, 24, 32, 48, 64, 96, 128])
    limits.descriptors(run.folder / "descriptors", figures)
    run.each(lambda place: limits.file_size(place, figures, limits.sizes_of(rng, 8, 12 << 10)))
    if limits.can_mount():
        run.each(lambda place: limits.full_disk(place, figures, limits.sizes_of(rng, 12)))
        run.each(lambda place: limits.read_only(place, figures), SCENARIOS[:2])
    else:
        figures.count("no root: no small disk was made", 0)


def _scale(run: Run) -> None:
    few = run.size.few
    scale.grows(scale.many_tensors, run.folder, run.figures, few, 10 * few)
    scale.grows(scale.many_shards, run.folder, run.figures, few, 10 * few)
    scale.grows(scale.many_models, run.folder, run.figures, 1 << few.bit_length(), 4 << few.bit_length())


def _repetition(run: Run) -> None:
    repetition.no_leaks(run.folder / "leaks", run.figures, run.seed, run.size.merges)
    number = run.size.merges // 10
    with workplace(SCENARIOS[0], run.folder) as place:
        repetition.after_fork(place, run.figures, -(-number // 10))
        repetition.at_once(place, run.figures, 8, number)
        repetition.under_signals(place, run.figures, number)


PARTS: dict[str, Callable[[Run], None]] = {
    "faults": _faults,
    "kills": _kills,
    "power": _power,
    "random-kills": _random_kills,
    "system-calls": _system_calls,
    "interrupts": _interrupts,
    "limits": _limits,
    "scale": _scale,
    "repetition": _repetition,
}
