"""Runs that are interrupted: nothing looks complete, an old model survives, and --resume goes on where they stopped."""

import errno
import fcntl
import json
import os
import signal

import pytest
import warpmerge as wm
from helpers import INTERRUPTED, SINGLE, contents, llama, looks_complete, run_process, write_model
from output_helpers import FIXTURES, SHARDED, change, expected, fail_at, interrupted, merge
from warpmerge.models.journal import JOURNAL
from warpmerge.models.output import OutputDirectory
from warpmerge.models.reread import Rereader
from warpmerge.models.staging import STAGING

(models,) = FIXTURES


# Where a run is stopped, and the least number of shards that it has finished by then.
STOPS = [
    ("shard", 1, 0),
    ("finish_shard", 1, 0),
    ("finish_shard", 3, 2),
    ("publish", 1, 5),
    ("stage", 1, 0),
    ("stage", 2, 5),
    ("check_names", 1, 5),
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
        (lambda lines: [*lines[:3], b"[" * 100_000, *lines[4:]], 2),
        (lambda lines: [*lines[:3], b"9" * 10_000, *lines[4:]], 2),
        (lambda lines: [*lines[:3], b"null", *lines[4:]], 2),
        (lambda lines: [*lines[:3], b'{"name": "../r.yml", "digests": ""}', *lines[4:]], 2),
        (lambda lines: [*lines[:3], b'{"name": {}, "digests": ""}', *lines[4:]], 2),
        (lambda lines: [*lines[:3], b'{"name": "a", "digests": 7}', *lines[4:]], 2),
        (lambda lines: [*lines[:3], b'{"name": "a", "digests": ["0"]}', *lines[4:]], 2),
        (lambda lines: [*lines[:3], lines[3][:-3] + b'z"}', *lines[4:]], 2),
        (
            lambda lines: [
                lines[0],
                *(line.replace(b'"digests": "', b'"digests": "0000000000000000') for line in lines[1:]),
            ],
            0,
        ),
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
    ("place", "call"),
    [("shard", 1), ("finish_shard", 3), ("stage", 1), ("stage", 2), ("check_names", 1), ("retire", 1)],
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


@pytest.mark.parametrize("damage", ["header", "tensor", "cut", "missing", "zeros", "link"])
def test_a_staged_shard_that_is_damaged_is_made_again(models, monkeypatch, damage):
    """With its size and time as they were, so that nothing but its bytes can tell."""
    staging = interrupted(models, monkeypatch, *SHARDED)
    shard = sorted(staging.glob("*.safetensors"))[1]
    before = shard.stat()
    if damage == "zeros":
        shard.write_bytes(bytes(before.st_size))
    elif damage == "link":
        shard.rename(models / "moved")
        shard.symlink_to(models / "moved")
    else:
        change(shard, damage)
    if damage not in ("missing", "link"):
        os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))
    again = merge(models, *SHARDED, "--resume", "--json")
    assert json.loads(again.stdout)["resumed_shards"] == 4
    assert contents(models / "out") == expected(models, *SHARDED)


@pytest.mark.parametrize("damage", ["header", "tensor"])
def test_a_shard_that_does_not_hold_what_was_written_is_not_published(models, monkeypatch, damage):
    """As after an error of the memory: it is found before the index appears."""
    real = OutputDirectory.finish_shard

    def spoiled(self, name, digests=None):
        if name.startswith("model-00002"):
            change(models / "out" / STAGING / name, damage)
        real(self, name, digests)

    with monkeypatch.context() as patch:
        patch.setattr(OutputDirectory, "finish_shard", spoiled)
        failed = merge(models, *SHARDED[:2])
    assert failed.status == 1 and "does not hold what was written to it" in failed.stderr
    assert not looks_complete(models / "out")
    assert merge(models, *SHARDED[:2], "--resume").status == 0
    assert contents(models / "out") == expected(models, *SHARDED[:2])


def rewrite(path):
    """Other values of the same size, and the time of the last change as it was."""
    before = path.stat()
    change(path, "tensor")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def swap(first, second):
    first.rename(first.with_name("x"))
    second.rename(first)
    first.with_name("x").rename(second)


def replace(path):
    before = path.stat()
    path.write_bytes(path.read_bytes())
    copy = path.with_name("copy")
    copy.write_bytes(path.read_bytes())
    change(copy, "tensor")
    os.utime(copy, ns=(before.st_atime_ns, before.st_mtime_ns))
    copy.rename(path)


@pytest.mark.parametrize("how", ["rewritten", "replaced", "swapped"])
def test_inputs_that_have_the_same_size_and_time_but_are_others(models, monkeypatch, how):
    for model in "ab":
        write_model(models / model, llama(ord(model)))
        os.utime(models / model / SINGLE, ns=(10**18, 10**18))
    interrupted(models, monkeypatch, *SHARDED)
    if how == "swapped":
        swap(models / "a", models / "b")
    else:
        {"rewritten": rewrite, "replaced": replace}[how](models / "a" / SINGLE)
    again = merge(models, *SHARDED, "--resume", "--json")
    assert json.loads(again.stdout)["resumed_shards"] == 0
    assert contents(models / "out") == expected(models, *SHARDED)


def test_an_interrupt_while_shards_are_checked_loses_none(models, monkeypatch):
    interrupted(models, monkeypatch, *SHARDED)
    with monkeypatch.context() as patch:
        patch.setattr(Rereader, "holds", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        assert merge(models, *SHARDED, "--resume").status == 130
    assert json.loads(merge(models, *SHARDED, "--resume", "--json").stdout)["resumed_shards"] == 5


def test_the_shards_that_are_checked_count_as_progress(models, monkeypatch):
    interrupted(models, monkeypatch, *SHARDED)
    seen = []
    wm.merge(
        models / "r.yml", models / "out", shard_size=600, resume=True, sync=False, progress=lambda *a: seen.append(a)
    )
    assert len(seen) >= 5 and seen == sorted(seen) and seen[-1][0] == seen[-1][1]
