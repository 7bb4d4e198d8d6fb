"""The torture in short, a few hundred runs of each kind. `make torture` runs all of it."""

import random

import pytest

from torture import children, faults, interrupts, limits, power, processes, repetition, scale, seam
from torture.figures import Figures, scratch
from torture.merges import SCENARIOS, workplace

SEED = 0


@pytest.fixture
def folder():
    """In memory, if the machine has such a place."""
    return scratch() / f"warpmerge-torture-{random.SystemRandom().getrandbits(64):x}"


@pytest.fixture
def figures():
    """Without losses at the end of the test, and not empty."""
    made = Figures("test")
    yield made
    assert made.runs
    assert not made.losses, "\n".join(made.losses[:20])


@pytest.fixture(params=SCENARIOS, ids=str)
def place(request, folder):
    with workplace(request.param, folder) as made:
        yield made


@pytest.fixture
def one_place(folder):
    with workplace(SCENARIOS[0], folder) as made:
        yield made


def rng():
    return random.Random(SEED)


def test_a_call_fails(place, figures):
    faults.fail_every_call(place, figures, rng(), 12)
    assert figures.counts["failed"]


def test_the_process_dies_at_a_call(place, figures):
    faults.kill_at_every_call(place, figures, rng(), 8)
    assert figures.counts["killed"] == 8


def test_the_power_goes(place, figures):
    power.lose_power(place, figures, SEED, 25)


def test_a_process_is_killed(one_place, figures):
    processes.kill_at_random(one_place, figures, rng(), 15)
    assert figures.counts["killed"]


def test_interrupts(folder, figures):
    interrupts.campaign(folder, figures, SEED, 15)


def test_address_space(folder, figures):
    limits.address_space(folder, figures, [8, 128])
    assert set(figures.counts) == {"refused", "finished"}


def test_few_descriptors(folder, figures):
    limits.descriptors(folder, figures, shards=200)


def test_files_that_may_not_grow(place, figures):
    limits.file_size(place, figures, [0, 4608, 1 << 16])
    assert set(figures.counts) == {"refused", "finished"}


@pytest.mark.parametrize(
    ("what", "few", "many"),
    [(scale.many_tensors, 500, 4000), (scale.many_shards, 100, 800), (scale.many_models, 64, 512)],
)
def test_very_many_things(folder, figures, what, few, many):
    scale.grows(what, folder, figures, few, many, judged=False)


def test_nothing_leaks(folder, figures):
    repetition.no_leaks(folder, figures, SEED, 60)


def test_children_of_a_fork(one_place, figures):
    repetition.after_fork(one_place, figures, 2)


def test_merges_at_once(one_place, figures):
    repetition.at_once(one_place, figures, 4, 12)


def test_merges_under_signals(one_place, figures):
    repetition.under_signals(one_place, figures, 12)
    assert figures.counts["signals"]


def test_there_is_one_way_to_the_files(folder):
    assert children.run(seam.ways_around, str(folder)) == []
