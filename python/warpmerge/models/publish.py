"""Moves a finished merge from the staging directory to its place, so that a stop at any moment does no harm.

The steps, each of which is on the disk before the next begins if that is wanted:

1. The index of an old model, or its only weight file, is removed. The old model does not look complete any more.
2. The other files of the old model that the new one does not replace are removed. Its manifest still names them.
3. The manifest comes up. Its fingerprint says which merge the directory belongs to, and that --resume may finish it.
4. All else comes up but the index.
5. The index, or the only weight file, comes up. The new model is complete.
"""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Collection, Sequence
from pathlib import Path

from .. import system
from ..errors import OutputError
from .leftovers import leftovers, remove_leftovers
from .names import INDEX, SINGLE


def check_names(output: Path, names: Sequence[str]) -> None:
    """Raises OutputError if one of the names cannot be given to a file, before anything is moved."""
    device = system.calls.stat(output).st_dev
    for name in names:
        try:
            status = system.calls.lstat(output / name)
        except FileNotFoundError:
            continue
        if stat.S_ISDIR(status.st_mode):
            raise OutputError(f"{output / name} is a directory, but a file of that name is to be written; remove it.")
        if status.st_dev != device:
            raise OutputError(f"{output / name} is a mount, but a file of that name is to be written; unmount it.")


def retire(output: Path, new: Collection[str], *, sync: bool) -> None:
    """Steps 1 and 2. `new`: all files of the new model, also those that are in their place. Raises OSError."""
    stale = leftovers(output) - {INDEX, SINGLE, *new}
    for name in (INDEX, SINGLE):
        with contextlib.suppress(FileNotFoundError):
            system.calls.unlink(output / name)
    if sync:
        system.sync_directory(output)
    remove_leftovers(output, stale)
    if sync and stale:
        system.sync_directory(output)


def place(staging: Path, output: Path, names: Sequence[str], *, fresh: bool, sync: bool) -> None:
    """Steps 3 to 5: moves the files up, in this order. The manifest is the first of the names, the index or only weight
    file the last.

    Raises OSError if a step fails. Then the output does not look complete, and --resume goes on from there. `fresh`:
    the output was empty, and is so again.
    """
    moved: list[str] = []
    try:
        for group in (names[:1], names[1:-1], names[1:][-1:]):
            for name in group:
                system.calls.rename(staging / name, output / name)
                moved.append(name)
            if sync and group:
                system.sync_directory(output)
    except OSError:
        with contextlib.suppress(OSError):  # what cannot be undone is left to --resume
            for name in reversed(moved):
                if fresh or name == names[-1]:
                    system.calls.rename(output / name, staging / name)
        raise
