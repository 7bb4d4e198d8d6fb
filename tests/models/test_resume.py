"""Runs that are interrupted: nothing looks complete, an old model survives, and --resume goes on where they stopped."""

import errno
import fcntl
import json
import os
import signal
from pathlib import Path

import pytest
from helpers import INTERRUPTED, SINGLE, contents, llama, looks_complete, run_process, write_model
from output_helpers import FIXTURES, SHARDED, expected, merge
from warpmerge.models.output import JOURNAL, STAGING, OutputDirectory

(models,) = FIXTURES


def fail_at(monkeypatch, name, call, error):
    """The `call`-th call (from 1) of a method of OutputDirectory raises `error` before it does anything."""
    real, calls = getattr(OutputDirectory, name), []

    def wrapped(self, *arguments):
        calls.append(name)
        if len(calls) == call:
            raise error
        return real(self, *arguments)

    monkeypatch.setattr(OutputDirectory, name, wrapped)


# Where a run is stopped, and the least number of shards that it has finished by then.
STOPS = [
    ("shard", 1, 0),
    ("finish_shard", 1, 0),
    ("finish_shard", 3, 2),
    ("publish", 1, 5),
    ("stage", 1, 0),
    ("stage", 2, 5),
]


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("sync", [False, True])
@pytest.mark.parametrize(("place", "call", "finished"), STOPS)
def test_interrupted_runs_leave_no_model_and_can_be_repeated(models, monkeypatch, place, call, finished, sync, resume):
    options = SHARDED[: 2 if sync else 3]
    whole = expected(models, *options)
    with monkeypatch.context() as patch:
        fail_at(patch, place, call, KeyboardInterrupt())
        stopped = merge(models, *options)
    assert stopped.status == 130
    assert "interrupted; nothing was published." in stopped.stderr
    assert ("--resume keeps them" in stopped.stderr) == (finished > 0)
    out = models / "out"
    assert out.exists() == (finished > 0)
    if finished:
        assert [p.name for p in out.iterdir()] == [STAGING]
        kept = {p.name: p.stat().st_ino for p in (out / STAGING).iterdir() if p.name != JOURNAL}
        assert len(kept) >= finished
    again = merge(models, *options, "--json", *(["--resume"] if resume else []))
    assert again.status == 0
    assert json.loads(again.stdout)["resumed_shards"] == (len(kept) if resume and finished else 0)
    assert contents(out) == whole
    if resume and finished:
        assert {name: (out / name).stat().st_ino for name in kept} == kept  # the very files, not made again


def test_a_real_interrupt(models):
    """SIGINT to a process that has finished one shard of several."""
    stopped = run_process("merge", models / "r.yml", models / "out", *SHARDED, setup=INTERRUPTED)
    assert (stopped.status, stopped.stdout) == (130, "")
    assert "1 of 5 shards are finished; --resume keeps them" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert not looks_complete(models / "out")
    assert merge(models, *SHARDED, "--resume").status == 0
    assert contents(models / "out") == expected(models, *SHARDED)


def test_a_killed_run_can_be_resumed(models):
    setup = (
        "import os, signal\n"
        "from warpmerge.models.output import OutputDirectory as O\n"
        "O.publish = lambda *a: os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    stopped = run_process("merge", models / "r.yml", models / "out", *SHARDED, setup=setup)
    assert stopped.status == -signal.SIGKILL
    assert [p.name for p in (models / "out").iterdir()] == [STAGING]
    assert json.loads(merge(models, *SHARDED, "--resume", "--json").stdout)["resumed_shards"] == 5
    assert contents(models / "out") == expected(models, *SHARDED)


def interrupted(folder, monkeypatch, *options):
    with monkeypatch.context() as patch:
        fail_at(patch, "publish", 1, KeyboardInterrupt())
        assert merge(folder, *options).status == 130
    return folder / "out" / STAGING


@pytest.mark.parametrize(
    ("damage", "resumed"),
    [
        (lambda lines: [], 0),
        (lambda lines: [b"", b"\xff", *lines], 0),
        (lambda lines: [b"another merge", *lines[1:]], 0),
        (lambda lines: lines[:1], 0),
        (lambda lines: lines[:3], 2),
        (lambda lines: [*lines[:3], lines[3][:-20]], 2),  # being written when the power went
        (lambda lines: [*lines[:3], b"[]", *lines[4:]], 2),
        (lambda lines: [*lines[:3], b'{"name": []}', *lines[4:]], 2),
        (lambda lines: [*lines[:3], lines[3].replace(b"digests", b"others"), *lines[4:]], 2),
        (lambda lines: lines, 5),
    ],
)
def test_a_damaged_journal_is_believed_as_far_as_it_goes(models, monkeypatch, damage, resumed):
    path = interrupted(models, monkeypatch, *SHARDED) / JOURNAL
    path.write_bytes(b"\n".join(damage(path.read_bytes().splitlines())))
    again = merge(models, *SHARDED, "--resume", "--json")
    assert json.loads(again.stdout)["resumed_shards"] == resumed
    assert contents(models / "out") == expected(models, *SHARDED)


def test_without_a_journal_all_is_made_again(models, monkeypatch):
    (interrupted(models, monkeypatch, *SHARDED) / JOURNAL).unlink()
    assert json.loads(merge(models, *SHARDED, "--resume", "--json").stdout)["resumed_shards"] == 0
    assert contents(models / "out") == expected(models, *SHARDED)


@pytest.mark.parametrize("change", ["recipe", "seed", "input", "shard size"])
def test_shards_of_another_merge_are_not_resumed(models, monkeypatch, change):
    interrupted(models, monkeypatch, *SHARDED)
    options = SHARDED
    if change == "recipe":
        recipe = models / "r.yml"
        recipe.write_text(recipe.read_text().replace("density: 0.5", "density: 0.25"))
    elif change == "seed":
        options = (*SHARDED, "--seed", "1")
    elif change == "input":
        write_model(models / "a", llama(7), shards=2)
    else:
        options = ("--shard-size", "2kB", "--no-sync")
    again = merge(models, *options, "--resume", "--json")
    assert json.loads(again.stdout)["resumed_shards"] == 0
    assert contents(models / "out") == expected(models, *options)


def test_a_cut_or_missing_shard_is_made_again(models, monkeypatch):
    staging = interrupted(models, monkeypatch, *SHARDED)
    first, second, *rest = sorted(staging.glob("*.safetensors"))
    os.truncate(first, first.stat().st_size - 1)
    second.unlink()
    again = merge(models, *SHARDED, "--resume", "--json")
    assert json.loads(again.stdout)["resumed_shards"] == len(rest) == 3
    assert contents(models / "out") == expected(models, *SHARDED)


def test_two_merges_into_one_output(models):
    """The second is refused while the first holds its lock, and does not disturb it."""
    staging = models / "out" / STAGING
    staging.mkdir(parents=True)
    (staging / "of-the-first").touch()
    lock = os.open(staging, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    refused = merge(models)
    assert (refused.status, "another merge is writing" in refused.stderr) == (1, True)
    assert [p.name for p in staging.iterdir()] == ["of-the-first"]
    os.close(lock)
    assert merge(models).status == 0


def test_file_systems_without_locks_are_used_without(models, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", unsupported)
    assert merge(models).status == 0


def test_an_output_that_appears_while_the_merge_is_planned_is_not_overwritten(models, monkeypatch):
    """As when two merges into one output start together and the first has finished before the second takes the lock."""
    real = OutputDirectory.open

    def late(self, *arguments):
        self.path.mkdir()
        (self.path / SINGLE).write_text("the other's")
        return real(self, *arguments)

    monkeypatch.setattr(OutputDirectory, "open", late)
    assert merge(models).status == 1
    assert contents(models / "out") == {SINGLE: b"the other's"}


@pytest.mark.parametrize(
    ("place", "call"), [("shard", 1), ("finish_shard", 3), ("stage", 1), ("stage", 2), ("_retire_old", 1)]
)
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.EIO, "I/O error")])
def test_the_old_model_survives_an_overwriting_run_that_fails(models, monkeypatch, place, call, error):
    assert merge(models).status == 0
    before = contents(models / "out")
    with monkeypatch.context() as patch:
        fail_at(patch, place, call, error)
        assert merge(models, *SHARDED, "--overwrite").status == (130 if isinstance(error, KeyboardInterrupt) else 1)
    assert {n: d for n, d in contents(models / "out").items() if not n.startswith(STAGING)} == before
    assert merge(models, *SHARDED, "--overwrite", "--resume").status == 0
    assert contents(models / "out") == expected(models, *SHARDED)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("move", range(1, 15))
def test_a_run_stopped_while_it_publishes_takes_its_files_back(models, monkeypatch, move, overwrite):
    """After any number of its files are in place but the last, and again when it is resumed."""
    options = (*SHARDED, "--overwrite") if overwrite else SHARDED
    if overwrite:
        assert merge(models).status == 0
    whole, moved = expected(models, *SHARDED), []
    real = Path.replace

    def replace(self, target):
        moved.append(target)
        if len(moved) == move:
            raise KeyboardInterrupt
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        assert merge(models, *options).status == 130
    found = {p.name for p in (models / "out").iterdir()}
    assert not looks_complete(models / "out") and not any(name.endswith(".safetensors") for name in found)
    assert overwrite or found == {STAGING}
    again = merge(models, *options, "--resume", "--json")
    assert json.loads(again.stdout)["resumed_shards"] == 5
    assert contents(models / "out") == whole
