"""Merges that lose their power at a random moment, and are resumed.

A run's changes are recorded once. Each number of a seed then stands for one story: a moment of the run, a state of the
disk that a power loss there may leave, and perhaps a second loss while the merge is resumed.
"""

from __future__ import annotations

import random

import warpmerge as wm

from torture.crash_states import Disk, Tree
from torture.figures import Figures, no_hang
from torture.merges import Workplace
from torture.simulator import Call, Simulator

AGAIN = 0.3  # how many of the stories have a second loss


def changes_of(place: Workplace, before: Tree, **options: bool) -> list[Call]:
    """What a merge changes that starts from this state."""
    place.restore(before)
    simulator = Simulator(place.folder)
    with simulator.running():
        place.merge(**options)
    return simulator.changes


def state_after(before: Tree, changes: list[Call], rng: random.Random) -> Tree:
    """A state of the disk after a loss at a random moment of a run."""
    disk = Disk(before)
    moment = rng.randrange(len(changes) + 1)
    for call in changes[:moment]:
        if call.path.split("/")[0] in ("", "out"):
            disk.apply(call)
    return disk.after_crash(rng)


def story(place: Workplace, changes: list[Call], seed: str, figures: Figures) -> list[str]:
    """Tells one story. Returns what is wrong in it."""
    rng = random.Random(seed)
    with no_hang():
        state = state_after(place.before, changes, rng)
        wrong = _look(place, state, figures)
        if rng.random() < AGAIN:
            figures.count("second losses")
            try:
                more = changes_of(place, state, resume=True)
            except wm.MergeError:
                pass  # it is refused below, too
            else:
                state = state_after(state, more, rng)
                wrong += _look(place, state, figures)
        place.restore(state)
        wrong += _go_on(place, figures)
    return [f"{place.scenario}, seed {seed}: {problem}" for problem in wrong]


def _look(place: Workplace, state: Tree, figures: Figures) -> list[str]:
    place.restore(state)
    figures.count("states")
    # Without sync a loss may leave anything. What --resume makes of it is checked all the same.
    return place.check(complete=place.scenario.sync)


def _go_on(place: Workplace, figures: Figures) -> list[str]:
    try:
        place.merge(resume=True)
    except wm.MergeError as error:
        figures.count("refused")
        known = not place.scenario.sync and "--overwrite" in str(error)  # what says whose files these are was lost
        return [] if known else [f"run with --resume: {error}"]
    except Exception as error:
        return [f"run with --resume: {type(error).__name__}: {error}"]
    return [f"run with --resume: {problem}" for problem in place.check_finished()]


def lose_power(place: Workplace, figures: Figures, seed: int, number: int) -> None:
    """So many stories of a merge."""
    with figures.timed():
        changes = changes_of(place, place.before)
        for each in range(number):
            name = f"{seed}/{each}"
            figures.add(story(place, changes, name, figures), f"power | {place.scenario} | {name}")
