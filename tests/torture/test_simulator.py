"""The simulator itself: what it does to calls, and that it finds what a careless program loses."""

import errno
import os
import random

import pytest
from warpmerge import system

from torture.crash_states import Disk, read
from torture.faults import Fault
from torture.simulator import DIE, Killed, Simulator

DATA, MARK = bytes(range(256)) * 40, "complete"


def publish(folder, *, sync_file=True, sync_names=True, sync_mark=True):
    """A program that writes a file in two pieces and then says, by an empty file, that it is complete."""
    staging = folder / "staging"
    system.calls.mkdir(staging)
    fd = system.calls.open(staging / "data", os.O_WRONLY | os.O_CREAT)
    system.write_at(fd, DATA[:5000], 0)
    system.write_at(fd, DATA[5000:], 5000)
    if sync_file:
        system.calls.fsync(fd)
    system.close(fd)
    system.calls.rename(staging / "data", folder / "data")
    if sync_names:
        system.sync_directory(folder)
    system.write_file(staging / MARK, b"", sync=True)
    system.calls.rename(staging / MARK, folder / MARK)
    if sync_mark:
        system.sync_directory(folder)


def states(folder, number, **options):
    """States after a loss of power at random moments."""
    simulator = Simulator(folder)
    with simulator.running():
        publish(folder, **options)
    for seed in range(number):
        rng = random.Random(seed)
        disk = Disk({})
        for call in simulator.changes[: rng.randrange(len(simulator.changes) + 1)]:
            disk.apply(call)
        yield disk.after_crash(rng)


def lost(state):
    return MARK in state and state.get("data") != DATA


def test_a_careful_program_loses_nothing(tmp_path):
    found = list(states(tmp_path, 1000))
    assert not any(map(lost, found))
    assert {} in found and any(MARK in state for state in found)


@pytest.mark.parametrize("forgotten", ["sync_file", "sync_names"])
def test_a_careless_program_is_found_out(tmp_path, forgotten):
    assert any(map(lost, states(tmp_path, 200, **{forgotten: False})))


def test_what_is_safe_stays(tmp_path):
    """After the last sync, every state has everything."""
    simulator = Simulator(tmp_path)
    with simulator.running():
        publish(tmp_path)
    disk = Disk({})
    for call in simulator.changes:
        disk.apply(call)
    for seed in range(100):
        state = disk.after_crash(random.Random(seed))
        assert (state["data"], state[MARK]) == (DATA, b"")


def test_content_is_torn_in_many_ways(tmp_path):
    found = {state.get("data") or state.get("staging/data") for state in states(tmp_path, 500, sync_file=False)}
    sizes = {len(content) for content in found if content is not None}
    assert {0, 5000, len(DATA)} < sizes and len(found) > 50


def test_a_story_is_the_same_for_the_same_seed(tmp_path):
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    assert list(states(folders[0], 50)) == list(states(folders[1], 50))


@pytest.mark.parametrize("number", range(12))
def test_after_its_death_a_program_changes_nothing(tmp_path, number):
    def decide(call):
        return DIE if call is simulator.calls[-1] and len(simulator.calls) == number + 1 else 0

    simulator = Simulator(tmp_path, decide)
    with pytest.raises(Killed), simulator.running():
        try:
            publish(tmp_path)
        finally:  # as a program does that tidies up
            system.calls.mkdir(tmp_path / "after")
    at_death = read(tmp_path)
    assert simulator.dead and "after" not in at_death and MARK not in at_death
    assert len(simulator.calls) == number + 1


def test_each_kind_of_fault(tmp_path):
    def outcome(label, verdict):
        simulator = Simulator(tmp_path, Fault(label, verdict).decision())
        with simulator.running():
            system.write_file(tmp_path / "a", b"12345678", sync=True)
            return system.read_file(tmp_path / "a", 100), simulator

    for label, verdict in [("open a #1", errno.EMFILE), ("pwrite a #1", errno.ENOSPC), ("fsync a #1", errno.EIO)]:
        with pytest.raises(OSError) as caught:
            outcome(label, verdict)
        assert caught.value.errno == verdict
    for label, verdict, repeated in [("pwrite a #1", -3, "pwrite a #2"), ("pread a #1", -5, "pread a #2")]:
        content, simulator = outcome(label, verdict)
        assert content == b"12345678"
        assert repeated in [call.label for call in simulator.calls]
    assert outcome("close a #1", errno.EINTR)[0] == b"12345678"


def test_what_stays_open_is_told_and_closed(tmp_path):
    simulator = Simulator(tmp_path)
    with simulator.running():
        fd = system.calls.open(tmp_path / "a", os.O_WRONLY | os.O_CREAT)
    assert simulator.left_open() == ["a"]
    with pytest.raises(OSError):
        os.fstat(fd)


def test_faults_have_names(tmp_path):
    for fault in [Fault("open a #1", errno.EIO), Fault("pread a #2", -7), Fault("rename a #1", DIE)]:
        assert Fault.named(str(fault)) == fault
    fault = Fault("open a #1", errno.EROFS, lasting=True)
    assert Fault.named(str(fault)) == fault
