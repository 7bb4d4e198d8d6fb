"""What an earlier merge left in a directory: the files that `--overwrite` may remove."""

from __future__ import annotations

import stat
from pathlib import Path

from .. import system
from ..errors import OutputError
from .documents import MANIFEST_LIMIT, read_json
from .names import CARD, CONFIG, MANIFEST, RECIPE, is_companion, is_weights


def leftovers(directory: Path) -> set[str]:
    """The names of the files that an earlier merge wrote into a directory.

    These are weights and, if there is a manifest, what the manifest says. Anybody can write a manifest: it is believed
    for names that a merge gives to files.

    Args:
        directory: the output directory; it need not exist.

    Returns:
        The names. Each is a regular file, no link.

    Raises:
        OutputError: the directory or the manifest cannot be read.
    """
    try:
        present = system.calls.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return set()
    except OSError as error:
        raise OutputError(f"cannot use the output {directory}: {error.strerror}.") from None
    said = _said(directory / MANIFEST) if MANIFEST in present else frozenset()
    ours = {name for name in present if is_weights(name) or (name in said and _is_ours(name))}
    try:
        return {name for name in ours if _is_regular(directory / name)}
    except OSError as error:
        raise OutputError(f"cannot use the output {directory}: {error.strerror}.") from None


def _is_regular(path: Path) -> bool:
    """Whether it is a regular file. Raises OSError if it is there and cannot be looked at."""
    try:
        return stat.S_ISREG(system.calls.lstat(path).st_mode)
    except FileNotFoundError:
        return False


def _is_ours(name: str) -> bool:
    return name in (CARD, CONFIG, MANIFEST, RECIPE) or (is_companion(name) and name.isprintable())


def _said(manifest: Path) -> frozenset[str]:
    """The files that a manifest says were written; none if it is no manifest of this program's."""
    try:
        document = read_json(manifest, MANIFEST_LIMIT)
    except OSError as error:
        raise OutputError(
            f"cannot read {manifest}: {error.strerror}; move it away, or choose another directory."
        ) from None
    except ValueError:
        return frozenset()
    files = document.get("files") if isinstance(document, dict) else None
    return frozenset(name for name in files if isinstance(name, str)) if isinstance(files, list) else frozenset()


def remove_leftovers(directory: Path, names: set[str]) -> None:
    """Removes the files of `leftovers` that are still regular files. Raises OSError."""
    for name in sorted(names, key=lambda name: (not is_weights(name), name)):
        if _is_regular(directory / name):
            system.calls.unlink(directory / name)
