"""The directory inside the output in which a merge makes its files. One merge at a time has it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from .. import _core, system
from ..errors import OutputError

STAGING = ".warpmerge-partial"


class Staging:
    """The staging directory of an output; `lock` makes it and takes it."""

    def __init__(self, output: Path) -> None:
        self.output, self.path = output, output / STAGING
        self._made: list[Path] = []
        self._lock: Any = None  # a _core.File: if all else fails, it is unlocked when nobody refers to it

    def lock(self, *, sync: bool) -> None:
        """Makes the directory, and whatever is missing above it. Raises OSError, or OutputError if another merge has
        it."""
        self._made = system.make_directories(self.path, sync=sync)
        self._lock = _core.File(system.calls.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW))
        if not self._is_mine(self._lock.fd):
            self.unlock()
            raise OutputError(
                f"another merge is writing to {self.output}; wait for its end, or choose another directory."
            )
        if system.calls.fstat(self._lock.fd).st_dev != system.calls.stat(self.output).st_dev:
            self.unlock()
            raise OutputError(f"{self.path} is a mount; unmount it.")

    def _is_mine(self, fd: int) -> bool:
        """Whether no other merge writes here. A file system without locks is trusted."""
        try:
            system.calls.lock(fd)
        except BlockingIOError:
            return False
        except OSError:
            pass
        try:
            # Another merge may have published, and removed what is locked here, since it was opened.
            return os.path.samestat(system.calls.fstat(fd), system.calls.lstat(self.path))
        except OSError:
            return False

    def clean(self, kept: Collection[str]) -> None:
        """Removes all but these files."""
        for name in system.calls.listdir(self.path):
            if name not in kept:
                system.remove(self.path / name)

    def remove(self) -> None:
        """Removes the directory with all that is in it, and those above that `lock` made if they are empty."""
        system.remove(self.path)
        self._unmake(self._made[1:])

    def give_back(self) -> None:
        """Leaves the directory as `lock` found it."""
        self._unmake(self._made)

    def _unmake(self, directories: list[Path]) -> None:
        with contextlib.suppress(OSError):
            for directory in directories:
                system.calls.rmdir(directory)

    def unlock(self) -> None:
        """Lets others have it."""
        self._lock = None
