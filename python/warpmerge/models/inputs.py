"""Input files, compared with what they were when a merge began.

A file that is written to while it is read gives a model that never was. So every input is compared again after the last
read: device, inode, size and both times of what its name stands for.

Whoever replaces a file leaves the open one as it was, and the data that were read are those of one model. That is an
error too: the manifest would name a file that was not read. So is a change of the times alone, as by `chmod` or a new
hard link: nobody can tell it from a write whose traces were removed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from .. import system
from ..errors import CheckpointError


class Noted:
    """Files as they are now, before they are read. A file that is missing must stay so."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._known = {path: _identity(path, system.settled) for path in paths}

    def check(self) -> None:
        """Raises CheckpointError for the first file that changed."""
        for path, known in self._known.items():
            check_identity(path, known)


def check_identity(path: Path, known: system.Identity | None) -> None:
    """Raises CheckpointError if what the name stands for does not have the known identity."""
    if _identity(path, system.calls.stat) != known:
        raise CheckpointError(f"{path} changed while it was being read; run the merge again.")


def _identity(path: Path, stat: Callable[[Path], os.stat_result]) -> system.Identity | None:
    try:
        return system.identity(stat(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}.") from None
