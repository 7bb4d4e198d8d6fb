"""Where an output must not be: in an input, or where it would destroy an input's files.

Directories and files are told apart by device and inode. So it does not matter by which link or mount they are reached.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from .. import system
from ..errors import OutputError

Node = tuple[int, int]


def check_place(output: Path, staging: Path, inputs: Iterable[Path]) -> None:
    """Raises OutputError if the output, or its staging directory, is or lies in an input, or holds files of one.

    A file of the output may have a hard link among the inputs: it is replaced, never written to.
    """
    status = _status(output)
    if status is not None and not stat.S_ISDIR(status.st_mode):
        raise OutputError(f"the output {output} is a file; choose another name.")
    here = Path(os.path.realpath(output))
    own = [here, here / staging.relative_to(output)]
    places = {_node(found) for path in own if (found := _status(path))}
    above = {_node(found) for path in here.parents if (found := _status(path))}
    held = {node for path in own if _status(path) for node in _held(path)}
    for source in inputs:
        node = _node(system.calls.stat(source))
        if node in places:
            raise OutputError(f"the output {output} is also an input; choose another directory.")
        if node in above:
            raise OutputError(f"the output {output} lies in the input {source}; choose another directory.")
        for name in system.calls.listdir(source) if held else ():
            if _is_theirs(source / name, held, places):
                raise OutputError(f"{source / name} lies in the output {output}; choose another directory.")


def _held(directory: Path) -> Iterable[Node]:
    """What lies in a directory; a link is itself, not what it leads to."""
    return (_node(system.calls.lstat(directory / name)) for name in system.calls.listdir(directory))


def _is_theirs(file: Path, held: set[Node], places: set[Node]) -> bool:
    """Whether an input's file would be lost with the output's: it is one of them, and not by a hard link of its own."""
    status = _status(file)
    if status is None or not stat.S_ISREG(status.st_mode) or _node(status) not in held:
        return False
    parent = _status(Path(os.path.realpath(file)).parent)
    return status.st_nlink == 1 or parent is None or _node(parent) in places


def _status(path: Path) -> os.stat_result | None:
    try:
        return system.calls.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _node(status: os.stat_result) -> Node:
    return status.st_dev, status.st_ino
