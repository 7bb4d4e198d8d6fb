"""Companions: the files of a model that a merge takes over as they are, such as those of the tokenizer."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from .. import system
from ..errors import CheckpointError, unreadable
from .names import is_companion

LARGEST = 256 << 20  # bytes; a larger file is data, not part of a model


@dataclass(frozen=True)
class Companion:
    """A file to copy. `path` is where the model has it, `real` where its content is, without links."""

    path: Path
    real: str
    identity: system.Identity

    def copy_to(self, target: Path, *, sync: bool) -> None:
        """Copies it, a piece at a time.

        Raises:
            CheckpointError: it cannot be opened, or is not the file that the plan saw.
            OSError: the copy cannot be made.
        """
        try:
            source = system.open_regular(self.real, follow=False)
        except OSError as error:
            raise unreadable(error.errno, error.strerror, self.path) from None
        try:
            self._check(source)
            system.copy_file(source, target, sync=sync)
            self._check(source)
        finally:
            system.close(source)

    def _check(self, source: int) -> None:
        if system.identity(system.calls.fstat(source)) != self.identity:
            raise unreadable(errno.ESTALE, "it changed", self.path)


def companions(directory: Path) -> dict[str, Companion]:
    """The files of a model that a merge takes over as they are, by name.

    Args:
        directory: the directory of the model.

    Returns:
        The companions.

    Raises:
        CheckpointError: a file cannot be read, is not regular, is a link to a file elsewhere, or has a name with
            control characters.
    """
    try:
        names = sorted(filter(is_companion, system.calls.listdir(directory)))
    except OSError as error:
        raise unreadable(error.errno, error.strerror, directory) from None
    found = {}
    for name in names:
        path = directory / name
        real = located(path)
        try:
            status = system.calls.lstat(real)
            if stat.S_ISDIR(status.st_mode) or status.st_size > LARGEST:
                continue
            system.close(system.open_regular(real, follow=False))
        except OSError as error:
            raise unreadable(error.errno, error.strerror, path) from None
        if not name.isprintable():
            raise CheckpointError(f"{path}: the name has characters that are not printable; rename or remove it.")
        found[name] = Companion(path, real, system.identity(status))
    return found


def located(path: Path) -> str:
    """Where the content of a file lies that a model's directory names.

    Links may lead within the model's directory and, from a snapshot of the Hugging Face cache, to the blobs of the
    same repository. Whoever publishes a model could otherwise have the output take any file of this machine.

    Raises:
        CheckpointError: links lead elsewhere.
    """
    directory, real = os.path.realpath(path.parent), os.path.realpath(path)
    revisions, _ = os.path.split(directory)
    roots = [directory]
    if os.path.basename(revisions) == "snapshots":
        roots.append(os.path.join(os.path.dirname(revisions), "blobs"))
    if not any(real.startswith(os.path.join(root, "")) for root in roots):
        raise CheckpointError(
            f"{path} is a link to {real}, outside of the model's directory; if it belongs to the model, replace the "
            "link by a copy."
        )
    return real
