"""What tests of output directories share: models, a merge of them in shards, and what an undisturbed one writes."""

import os

import pytest
from helpers import contents, run_cli, write_ties
from warpmerge import system
from warpmerge.models import output
from warpmerge.models.output import OutputDirectory
from warpmerge.models.staging import STAGING


@pytest.fixture
def models(tmp_path):
    return write_ties(tmp_path)


SHARDED = ("--shard-size", "600", "--no-sync")  # bytes: each of the larger tensors in a shard of its own


def merge(folder, *options, out="out"):
    return run_cli("merge", folder / "r.yml", folder / out, *options)


def expected(folder, *options):
    """What an undisturbed run writes."""
    assert merge(folder, *options, out="undisturbed").status == 0
    return contents(folder / "undisturbed")


FIXTURES = (models,)  # a test file binds it to this name


def fail_at(monkeypatch, name, call, error):
    """The `call`-th call (from 1) of a method of OutputDirectory, or of a function that it uses, raises `error` before
    it does anything."""
    owner = OutputDirectory if hasattr(OutputDirectory, name) else output
    real, calls = getattr(owner, name), []

    def wrapped(*arguments, **options):
        calls.append(name)
        if len(calls) == call:
            raise error
        return real(*arguments, **options)

    monkeypatch.setattr(owner, name, wrapped)


def interrupted(folder, monkeypatch, *options):
    with monkeypatch.context() as patch:
        fail_at(patch, "publish", 1, KeyboardInterrupt())
        assert merge(folder, *options).status == 130
    return folder / "out" / STAGING


class Failing(system.System):
    """Does something at the n-th renaming of a file (from 1); the first is the journal's."""

    def __init__(self, move, action):
        self.left, self.action, self.undo = move, action, True

    def rename(self, source, target):
        self.left -= 1
        if self.left == 0 or (self.left < 0 and not self.undo):
            self.action()
        super().rename(source, target)


def change(path, damage):
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        os.truncate(path, path.stat().st_size - 1)
    else:
        data = bytearray(path.read_bytes())
        data[data.index(b"model.") if damage == "header" else -3] ^= 1  # the name of a tensor, or its last element
        path.write_bytes(data)
