"""Calls to the system that fail or do half: a clear error from which --resume goes on, or the same model."""

import errno

import pytest
from helpers import contents, looks_complete
from kills import Killed, seen
from output_helpers import FIXTURES, SHARDED, expected, merge
from warpmerge import system

(models,) = FIXTURES


class Failing(Killed):
    """The n-th call that changes something (from 0) fails."""

    def __init__(self, call, code):
        super().__init__(call)
        self.code = code

    def reached(self):
        raise OSError(self.code, "it fails")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=errno.errorcode.get)
@pytest.mark.parametrize("options", [("--shard-size", "1kB"), ("--overwrite",)])
def test_a_failure_at_every_call(models, options, code):
    whole, call = expected(models, *options), 0
    merge(models, out="old")
    while True:
        out = f"out{call}"
        if "--overwrite" in options:
            merge(models, *SHARDED, out=out)
        failing = Failing(call, code)
        with system.using(failing):
            failed = merge(models, *options, out=out)
        if failing.left >= 0:
            break
        if failed.status:
            assert failed.stderr.startswith("error: ") and str(models / out) in failed.stderr
            assert ("--resume" in failed.stderr) == (code in (errno.ENOSPC, errno.EDQUOT))
            assert not looks_complete(models / out) or ("--overwrite" in options and seen(models / out) != whole)
            assert merge(models, *options, "--resume", out=out).status == 0
        assert seen(models / out) == whole  # the staging directory of a complete output may stay
        call += 1
    assert call > 30


class Short(system.System):
    """Writes and reads half of what is asked for, at least a byte."""

    def pwrite(self, fd, data, offset):
        return super().pwrite(fd, data[: -(-len(data) // 2)], offset)

    def pread(self, fd, nbytes, offset):
        return super().pread(fd, -(-nbytes // 2), offset)


def test_short_writes_and_reads_are_continued(models):
    whole = expected(models, *SHARDED)
    with system.using(Short()):
        assert merge(models, *SHARDED).status == 0
    assert contents(models / "out") == whole
    with system.using(Short()):
        assert merge(models, *SHARDED, "--resume").status == 0


class Interrupted(system.System):
    """As on Linux: the descriptor is closed, and the call says that it was interrupted."""

    def close(self, fd):
        super().close(fd)
        raise InterruptedError(errno.EINTR, "Interrupted system call")


def test_an_interrupted_close_is_no_failure(models):
    with system.using(Interrupted()):
        assert merge(models, *SHARDED).status == 0
    assert contents(models / "out") == expected(models, *SHARDED)
