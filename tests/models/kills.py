"""Merges in processes that are killed at the n-th call to the operating system's files, for every n.

Run as a program, so that the process that forks has no threads: FOLDER SCENARIO... -> a line for each failure.
"""

import contextlib
import os
import shutil
import signal
import sys
from pathlib import Path

import warpmerge as wm
from helpers import contents, looks_complete
from warpmerge import system
from warpmerge.models.staging import STAGING


class Killed(system.System):
    """Kills its process before the n-th call that changes something (from 0). `left` is negative after that."""

    CHANGES = ("pwrite", "fsync", "fdatasync", "fallocate", "truncate", "rename", "unlink", "mkdir", "rmdir")

    def __init__(self, call):
        self.left = call

    def __getattribute__(self, name):
        if name in Killed.CHANGES:
            self.left -= 1
            if self.left == -1:
                return self.fails
        return super().__getattribute__(name)

    def fails(self, *_):
        self.reached()

    def reached(self):
        os.kill(os.getpid(), signal.SIGKILL)


def run(folder, out, call=None, recipe="r.yml", **options):
    """A merge in a process of its own. Returns its exit status; negative: killed."""
    pid = os.fork()
    if pid == 0:
        status = 1
        with contextlib.suppress(wm.MergeError), system.using(system.System() if call is None else Killed(call)):
            wm.merge(folder / recipe, out, threads=1, **options)
            status = 0
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def seen(out):
    """What somebody sees who does not look into the staging directory."""
    return {name: data for name, data in contents(out).items() if not name.startswith(STAGING)} if out.exists() else {}


def problems(folder, old, options, following):
    """Kills the merge at every call, then does what `following` says: each must find its own model in the end."""
    whole = {}
    for recipe in ("r.yml", "other.yml"):
        out = folder / f"whole-{recipe}"
        assert run(folder, out, recipe=recipe, **{**options, "overwrite": True}) == 0
        whole[recipe] = contents(out)
    model = folder / "old"
    if old:
        assert run(folder, model, recipe="old.yml") == 0
    call = 0
    while True:
        out = folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        if old:
            shutil.copytree(model, out)
        status = run(folder, out, call, **options)
        if status == 0:
            return
        if status != -signal.SIGKILL:
            yield f"call {call}: the merge failed"
        if looks_complete(out) and seen(out) not in (whole["r.yml"], contents(model) if old else None):
            yield f"call {call}: it looks complete, and is not"
        recipe, *flags = following
        again = run(folder, out, recipe=recipe, **{**options, **dict.fromkeys(flags, True)})
        if again != 0:
            yield f"call {call}: the following merge failed"
        elif contents(out) != whole[recipe]:
            differ = {name for name, _ in contents(out).items() ^ whole[recipe].items()}
            yield f"call {call}: another model: {sorted(differ)}"
        call += 1


def main(folder, old, shard_size, sync, overwrite, *following):
    options = {"shard_size": shard_size, "sync": sync == "sync", "overwrite": overwrite == "overwrite"}
    found = list(problems(Path(folder), old == "old", options, following))
    print("\n".join(found) or "none")


if __name__ == "__main__":
    main(*sys.argv[1:])
