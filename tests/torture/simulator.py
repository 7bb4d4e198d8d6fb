"""An operating system that fails on purpose.

`Simulator` stands where `warpmerge.system.System` stands, and answers the native module's calls as well. It sees every
call that the engine makes to a file below one folder, numbers it, writes down what it changed, and may decide that it
fails. Four things can happen to a call:

- it goes on as it is;
- it fails with an errno, and has done nothing;
- it does a part: so many bytes of a read or a write;
- the process dies there: this call and all later ones do nothing any more. Python code is stopped by `Killed`, which
  no handler can hold up, because each further call that it makes raises `Killed` again. Native code gets EIO instead.
  What lies in the folder is then what a kill -9 at this call would have left.

**Names of calls.** A number alone would name another call in each run, since threads take turns. So a call is named by
what it does: `pwrite out/model-00001-of-00002.safetensors #2` is the second write to that file. With one worker thread
the names of a run are the same each time, so a seed and a name are enough to see a failure again.

**What is modelled.** All of `System`, calls that are added to it later included; positioned reads and writes, hints,
opens and closes of native code. Python repeats calls after a signal, so EINTR is given to native code and to `close`
only. `changes` holds what `crash_states` needs to tell what a power loss may leave.

**What is not.** Memory maps, since the engine has none. Failures of calls that are no calls to files, such as mmap and
clone: limits of real resources cause those (`resources`). Bytes that a disk returns wrongly: the digests of `verify`
are for those, and other tests change bytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import gc
import itertools
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from warpmerge import _core, system
from warpmerge.system import System

GO_ON, DIE = 0, 1 << 20  # what may be decided, besides an errno and minus a number of bytes
WHOLE = {"pread", "preadv2", "pwrite"}  # calls that can do a part

Decision = Callable[["Call"], int]


class Killed(BaseException):
    """The simulated process is dead."""


@dataclass(frozen=True)
class Call:
    """One call. `path` counts from the simulator's folder. `node` is the file itself, whatever its name is by now."""

    name: str
    path: str
    repetition: int
    native: bool = False
    node: int = -1
    offset: int = 0
    nbytes: int = 0
    data: bytes | None = None
    target: str = ""  # of a rename
    created: bool = False  # by an open
    truncated: bool = False  # by an open

    @property
    def label(self) -> str:
        return f"{'native ' if self.native else ''}{self.name} {self.path} #{self.repetition}"


class Simulator(System):
    """`decide` is asked about each call; `calls` has all of them in order, `changes` those that did what they say."""

    def __init__(self, folder: Path, decide: Decision = lambda call: GO_ON) -> None:
        self._folder = f"{folder}/"
        self._decide = decide
        self._seen: Counter[tuple[Any, ...]] = Counter()
        self._lock = threading.RLock()
        self._nodes: dict[tuple[int, int], int] = {}
        self._numbers = itertools.count()
        self.calls: list[Call] = []
        self.changes: list[Call] = []
        self.dead = False

    @contextlib.contextmanager
    def running(self) -> Iterator[Simulator]:
        """Every call of the block comes here."""
        _core.watch(self._native)
        try:
            with system.using(self):
                yield self
        finally:
            _core.watch(None)

    def left_open(self) -> list[str]:
        """Closes what was opened below the folder and is still open, as the end of a process does, and returns the
        paths. To be called when nobody holds the exception that ended the run."""
        gc.collect()
        left = {int(fd): path for fd in os.listdir("/proc/self/fd") if (path := self._path_of(int(fd))) is not None}
        for fd in left:
            os.close(fd)
        return sorted(left.values())

    # The decision.

    def _ask(self, name: str, path: str, native: bool, **details: Any) -> tuple[Call, int]:
        with self._lock:
            self._seen[name, path, native] += 1
            call = Call(name, path, self._seen[name, path, native], native, **details)
            if self.dead:
                return call, DIE
            self.calls.append(call)
            verdict = self._decide(call)
            self.dead = verdict == DIE
            return call, verdict

    # Calls of native code.

    def _native(self, name: str, fd: int, offset: int, nbytes: int, data: bytes | None) -> int:
        path = self._path_of(os.fsdecode(data) if name == "open" and data is not None else fd)
        if path is None:
            return GO_ON
        if name == "open":
            return _errno(self._ask(name, path, True)[1])
        node = self._node(_identity(fd))
        call, verdict = self._ask(name, path, True, node=node, offset=offset, nbytes=nbytes, data=data)
        if name == "close":
            return GO_ON if verdict == DIE else verdict
        if verdict <= 0:
            self._note(call, data[: -verdict or None] if data is not None else None)
        return _errno(verdict)

    # Calls of Python code.

    def _call(self, name: str, real: Callable[..., Any], first: Any, *rest: Any) -> Any:
        path = self._path_of(first)
        if path is None:
            return real(self, first, *rest)
        if name == "close":
            return self._closed(path, real, first)
        call, verdict = self._ask(name, path, False, **self._details(name, first, *rest))
        if verdict == DIE:
            raise Killed
        if verdict > 0:
            raise OSError(verdict, os.strerror(verdict), None if isinstance(first, int) else str(first))
        if verdict < 0:
            rest = (rest[0][:-verdict] if name == "pwrite" else -verdict, *rest[1:])
        result = real(self, first, *rest)
        if name == "open":
            call = dataclasses.replace(call, node=self._node(_identity(result), fresh=call.created))
        elif name == "mkdir":
            call = dataclasses.replace(call, node=self._node(_identity(first), fresh=True))
        self._note(call, bytes(rest[0]) if name == "pwrite" else None)
        return result

    def _details(self, name: str, first: Any, *rest: Any) -> dict[str, Any]:
        """What a `Call` holds besides its name and path."""
        if name == "open":
            creates = bool(rest[0] & os.O_CREAT) and not os.path.lexists(first)
            return {"created": creates, "truncated": bool(rest[0] & os.O_TRUNC)}
        found: dict[str, Any] = {"node": self._node(_identity(first))}
        if name == "rename":
            found["target"] = self._path_of(rest[0])
        elif name == "pwrite":
            found |= {"data": bytes(rest[0]), "nbytes": len(rest[0]), "offset": rest[1]}
        elif name == "pread":
            found |= {"nbytes": rest[0], "offset": rest[1]}
        elif name in ("truncate", "fallocate"):
            found["nbytes"] = rest[0]
        return found

    def _closed(self, path: str, real: Callable[..., Any], fd: int) -> None:
        """A close closes, whatever it says. A dead process closes everything."""
        _, verdict = self._ask("close", path, False)
        real(self, fd)
        if verdict == DIE:
            raise Killed
        if verdict > 0:
            raise OSError(verdict, os.strerror(verdict))

    def _note(self, call: Call, data: bytes | None) -> None:
        with self._lock:
            self.changes.append(call if data == call.data else dataclasses.replace(call, data=data))

    # Names of files.

    def _path_of(self, what: Any) -> str | None:
        """The path from the folder, None for what lies elsewhere."""
        if isinstance(what, int):
            try:
                path = os.readlink(f"/proc/self/fd/{what}")
            except OSError:
                return None
        else:
            path = os.path.abspath(what)
        return f"{path}/".removeprefix(self._folder).rstrip("/") if f"{path}/".startswith(self._folder) else None

    def _node(self, identity: tuple[int, int] | None, fresh: bool = False) -> int:
        """A number that no other file of this run has: a new file may get the inode of one that is gone."""
        if identity is None:
            return -1
        with self._lock:
            if fresh or identity not in self._nodes:
                self._nodes[identity] = next(self._numbers)
            return self._nodes[identity]


def _errno(verdict: int) -> int:
    """The answer to native code."""
    return errno.EIO if verdict == DIE else verdict


def _identity(what: int | str | Path) -> tuple[int, int] | None:
    try:
        status = os.fstat(what) if isinstance(what, int) else os.lstat(what)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _wrapped(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(real)
    def call(self: Simulator, *arguments: Any) -> Any:
        return self._call(name, real, *arguments)

    return call


for _name, _real in vars(System).items():
    if callable(_real) and not _name.startswith("_"):
        setattr(Simulator, _name, _wrapped(_name, _real))
