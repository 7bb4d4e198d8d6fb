"""Merges in which one call fails, or at which the process dies, for each call that the merge makes.

First the merge runs undisturbed and its calls are listed. Then it runs once for each call and each thing that can
happen to it. After each of these runs nothing may look complete that is not, and the merge, run again, must give the
right bytes.
"""

from __future__ import annotations

import errno
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import warpmerge as wm

from torture.figures import Figures, no_hang
from torture.merges import Workplace
from torture.simulator import DIE, GO_ON, WHOLE, Call, Killed, Simulator

FULL = {"open", "pwrite", "fsync", "fdatasync", "fallocate", "truncate", "rename", "mkdir"}  # of a disk
STUCK = {"open", "fsync", "fdatasync", "pwrite", "fallocate", "truncate", "rename", "mkdir", "unlink", "rmdir"}


@dataclass(frozen=True)
class Fault:
    """What happens to the call of this name. `lasting`: to every later call that changes something as well, as on a
    disk that stays full or broken."""

    label: str
    verdict: int
    lasting: bool = False

    def __str__(self) -> str:
        what = f"{-self.verdict} bytes" if self.verdict < 0 else errno.errorcode.get(self.verdict, "dies")
        return f"{self.label} | {what}{' for good' * self.lasting}"

    @classmethod
    def named(cls, text: str) -> Fault:
        """The fault that prints like this."""
        label, what = text.split(" | ")
        lasting, what = what.endswith(" for good"), what.removesuffix(" for good")
        if what.endswith(" bytes"):
            return cls(label, -int(what.removesuffix(" bytes")))
        return cls(label, DIE if what == "dies" else getattr(errno, what), lasting)

    def decision(self) -> Callable[[Call], int]:
        """What the simulator asks."""
        begun = False

        def decide(call: Call) -> int:
            nonlocal begun
            now = call.label == self.label
            begun = begun or now
            return self.verdict if now or (begun and self.lasting and call.name in STUCK) else GO_ON

        return decide


def faults_of(call: Call) -> Iterator[Fault]:
    """What can happen to a call, death apart."""
    if call.name == "lock":
        yield Fault(call.label, errno.ENOLCK)
        return
    yield Fault(call.label, errno.EIO)
    if call.native or call.name == "close":
        yield Fault(call.label, errno.EINTR)
    if call.name in FULL:
        yield Fault(call.label, errno.ENOSPC)
    if call.name in STUCK:
        yield Fault(call.label, errno.EROFS, lasting=True)
        yield Fault(call.label, errno.EDQUOT, lasting=True)
    if call.name == "open":
        yield Fault(call.label, errno.EMFILE)
        yield Fault(call.label, errno.EACCES)
    if call.name in WHOLE:
        for part in sorted({1, call.nbytes // 2, call.nbytes - 1} - {0, call.nbytes}):
            if part > 0:
                yield Fault(call.label, -part)


def calls_of(place: Workplace) -> list[Call]:
    """The calls of an undisturbed run."""
    place.restore()
    simulator = Simulator(place.folder)
    with simulator.running():
        place.merge()
    assert not place.check_finished() and not simulator.left_open()
    return simulator.calls


def disturbed(place: Workplace, fault: Fault, figures: Figures) -> list[str]:
    """Runs the merge with a fault, and again without. Returns what is wrong."""
    place.restore()
    threads = threading.active_count()
    simulator = Simulator(place.folder, fault.decision())
    wrong = []
    with no_hang():
        try:
            with simulator.running():
                place.merge()
            outcome = "succeeded"
        except Killed:
            outcome = "killed"
        except wm.MergeError:
            outcome = "failed"
        except BaseException as error:
            outcome = "crashed"
            wrong.append(f"{type(error).__name__}: {error}")
        left = simulator.left_open()
        if simulator.dead:
            outcome = "killed"
        figures.count(outcome)
        wrong += place.check_finished(disturbed=True) if outcome == "succeeded" else place.check()
        if not simulator.dead:
            wrong += [f"{path} was left open" for path in left]
            wrong += ["a thread was left running"] * (threading.active_count() > threads)
        wrong += place.check_both_ways_on()
    return [f"{place.scenario} | {fault}: {problem}" for problem in wrong]


def fail_every_call(place: Workplace, figures: Figures, rng: random.Random, most: int | None = None) -> None:
    """A run for each fault of each call; `most`: for so many of them, drawn at random."""
    _run_all(place, [fault for call in calls_of(place) for fault in faults_of(call)], figures, rng, most)


def kill_at_every_call(place: Workplace, figures: Figures, rng: random.Random, most: int | None = None) -> None:
    """A run for each call at which the process dies."""
    _run_all(place, [Fault(call.label, DIE) for call in calls_of(place)], figures, rng, most)


def _run_all(place: Workplace, faults: list[Fault], figures: Figures, rng: random.Random, most: int | None) -> None:
    with figures.timed():
        for fault in faults if most is None or most >= len(faults) else rng.sample(faults, most):
            figures.add(disturbed(place, fault, figures), f"fault | {place.scenario} | {fault}")
