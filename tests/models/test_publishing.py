"""Publishing: one that fails or is interrupted, one that was finished, and what it leaves."""

import errno
import json
import os
import signal
import time

import pytest
from helpers import INDEX, contents, looks_complete
from output_helpers import FIXTURES, SHARDED, Failing, change, expected, interrupted, merge
from warpmerge import system
from warpmerge.models.staging import STAGING

(models,) = FIXTURES


def no_move():
    raise OSError(errno.EIO, "I/O error")


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("move", range(2, 16))
def test_a_publishing_that_fails_can_be_resumed(models, move, overwrite):
    """After any number of its files are in place but the last. A new output is empty again."""
    options = (*SHARDED, "--overwrite") if overwrite else SHARDED
    if overwrite:
        assert merge(models).status == 0
    whole = expected(models, *SHARDED)
    with system.using(Failing(move, no_move)):
        failed = merge(models, *options)
    assert failed.status == 1
    assert failed.stderr == f"error: cannot write to {models / 'out'}: I/O error.\n"
    assert not looks_complete(models / "out")
    assert overwrite or [p.name for p in (models / "out").iterdir()] == [STAGING]
    again = merge(models, *options, "--resume", "--json")
    assert json.loads(again.stdout)["resumed_shards"] == 5
    assert contents(models / "out") == whole


@pytest.mark.parametrize("move", range(2, 16))
def test_a_publishing_that_is_interrupted_goes_on_to_its_end(models, move):
    whole = expected(models, *SHARDED)
    with system.using(Failing(move, lambda: [os.kill(os.getpid(), signal.SIGINT), time.sleep(0.01)])):
        stopped = merge(models, *SHARDED)
    assert stopped.status == 130
    assert stopped.stderr.strip() == f"interrupted while {models / 'out'} was published; it is complete."
    assert contents(models / "out") == whole


def test_a_staging_directory_that_stays_does_no_harm(models):
    """The output is complete: an error now would be wrong."""

    class Stays(system.System):
        def rmdir(self, path):
            raise OSError(errno.EIO, "I/O error")

    with system.using(Stays()):
        assert merge(models).status == 0
    assert [p.name for p in (models / "out" / STAGING).iterdir()] == []
    assert merge(models, "--resume").status == 0
    assert contents(models / "out") == expected(models)
    assert not (models / "out" / STAGING).exists()


@pytest.mark.parametrize("options", [SHARDED, ("--no-sync",), ("--overwrite",)])
def test_what_is_finished_is_checked_and_left_as_it_is(models, options):
    """So that a loop which repeats a merge until it succeeds ends."""
    assert merge(models, *options).status == 0
    before = {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in (models / "out").iterdir()}
    again = merge(models, *options, "--resume", "--json")
    assert again.status == 0
    report = json.loads(again.stdout)
    assert report["resumed_shards"] == report["shards"]
    assert {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in (models / "out").iterdir()} == before


@pytest.mark.parametrize("options", [SHARDED, ("--no-sync",)])
@pytest.mark.parametrize("damage", ["header", "tensor", "cut", "missing", "index"])
def test_what_is_finished_and_damaged_is_said_to_be_and_made_again(models, options, damage):
    assert merge(models, *options).status == 0
    whole = contents(models / "out")
    index = models / "out" / INDEX
    shard = index if damage == "index" and index.exists() else sorted((models / "out").glob("*.safetensors"))[0]
    change(shard, damage)
    refused = merge(models, *options, "--resume")
    if damage == "missing" and options != SHARDED:
        assert refused.status == 0  # not complete any more: it is finished
    else:
        assert refused.status == 1
        assert f"{shard} is not what this merge wrote; pass --overwrite" in refused.stderr
        assert not (models / "out" / STAGING).exists()
        assert merge(models, *options, "--resume", "--overwrite").status == 0
    assert contents(models / "out") == whole


def test_an_output_that_was_to_be_made_again_is_still_finished(models, monkeypatch):
    """The interrupted run has staged shards of the same merge: they are not needed."""
    assert merge(models, *SHARDED).status == 0
    interrupted(models, monkeypatch, *SHARDED, "--overwrite")
    assert merge(models, *SHARDED, "--resume").status == 0
    assert contents(models / "out") == expected(models, *SHARDED)


def test_small_files_that_the_source_has_no_more_are_not_left_of_an_earlier_run(models):
    """The run that is resumed had moved its tokenizer into place."""
    failing = Failing(12, no_move)
    failing.undo = False
    with system.using(failing):
        assert merge(models, *SHARDED).status == 1
    assert (models / "out" / "tokenizer.json").exists()
    (models / "base" / "tokenizer.json").unlink()
    again = merge(models, *SHARDED, "--resume", "--json")
    assert json.loads(again.stdout)["resumed_shards"] == 5
    assert contents(models / "out") == expected(models, *SHARDED)
