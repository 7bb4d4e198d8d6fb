"""Whether a merge has a way to the files besides the seam. Python tells an audit hook of every file that is opened,
listed, renamed, made or removed, whoever does it."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Any

import warpmerge as wm

from torture.merges import SCENARIOS, Workplace
from torture.simulator import Simulator

EVENTS = {"open", "os.listdir", "os.scandir", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink"}
EVENTS |= {"os.truncate", "os.chmod", "os.utime", "shutil.rmtree", "shutil.copyfile", "shutil.move", "tempfile.mkstemp"}


class Attentive(Simulator):
    """Knows whether a thread is within one of its calls."""

    within = threading.local()

    def _call(self, *arguments: Any) -> Any:
        before, self.within.call = getattr(self.within, "call", False), True
        try:
            return super()._call(*arguments)
        finally:
            self.within.call = before


def ways_around(folder: str) -> list[str]:
    """Merges, resumes and verifies, and returns what reached a file below the folder without the seam. Hooks cannot be
    taken off again, so this is for a process of its own."""
    place = Workplace(Path(folder), SCENARIOS[2])
    simulator = Attentive(place.folder)
    found, watching = set(), False

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if watching and event in EVENTS and not getattr(simulator.within, "call", False):
            path = arguments[0] if arguments else None
            if isinstance(path, (str, bytes, Path)) and os.fsdecode(path).startswith(folder):
                frame = sys._getframe(1)
                while frame.f_back and "warpmerge" not in frame.f_code.co_filename.split(os.sep):
                    frame = frame.f_back
                found.add(f"{event} in {frame.f_code.co_filename}, line {frame.f_lineno}")

    sys.addaudithook(hook)
    with simulator.running():
        watching = True
        place.merge()
        place.merge(resume=True)
        wm.verify(place.out)
        watching = False
    return sorted(found)
