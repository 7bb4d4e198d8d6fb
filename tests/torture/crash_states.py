"""What a disk may hold after the power went.

`Disk` is fed with the changes of a run in their order (`Simulator.changes`) and can be asked at any moment for a state
that a power loss at that moment may leave. It knows of each file what is safe, and of all that is not safe how it may
come out. The rules are those of POSIX, not of one file system, so they allow more than ext4, XFS or btrfs do:

- **Content.** fsync and fdatasync make a file's content and size safe. What came after may be there, be missing, or be
  torn: each sector or page is as some moment since then had it, whatever its neighbours are. The size is that of some
  such moment. Bytes within the size that no moment had are zeros or garbage.
- **Names.** An fsync of a directory makes safe which names are in it. Creations, renames and unlinks since then are
  there or not, each for itself or up to a moment. The fsync of a file does not keep its name.
- **Renames** are atomic: the file is seen under the old name or under the new one. They are safe when the directory of
  the new name is.
- What was never created is not renamed. A directory that is lost takes everything in it with it.

**What is not modelled.** Content that was safe does not go bad. An fsync that reports success has told the truth.
Owners, modes and times of files do not matter here.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from torture.simulator import Call

UNITS = (512, 4096)  # what a disk writes at once: a sector, a page
NO_CHANGE = {"pread", "preadv2", "readahead", "sync_file_range", "close", "lock"}
NO_CHANGE |= {"stat", "lstat", "fstat", "listdir", "free"}
Tree = Mapping[str, bytes | None]  # by path; None: a directory


@dataclass
class File:
    """`versions[0]` is safe. The others are what the file held after each change since then."""

    versions: list[bytes] = field(default_factory=lambda: [b""])

    def change(self, content: bytes) -> None:
        self.versions.append(content)

    def write(self, data: bytes, offset: int) -> None:
        now = self.versions[-1].ljust(offset, b"\0")
        self.change(now[:offset] + data + now[offset + len(data) :])

    def resize(self, nbytes: int) -> None:
        self.change(self.versions[-1][:nbytes].ljust(nbytes, b"\0"))

    def sync(self) -> None:
        del self.versions[:-1]

    def after_crash(self, rng: random.Random) -> bytes:
        kind = rng.choice(["nothing lost", "all lost", "up to a byte", "torn", "torn"])
        if kind == "nothing lost" or len(self.versions) == 1:
            return self.versions[-1]
        if kind == "all lost":
            return self.versions[0]
        if kind == "up to a byte":
            number = rng.randrange(1, len(self.versions))
            before, after = self.versions[number - 1 : number + 1]
            at = rng.randrange(max(len(before), len(after)) + 1)
            return after[:at] + before[at:]
        return self._torn(rng)

    def _torn(self, rng: random.Random) -> bytes:
        unit = rng.choice(UNITS)
        size = len(rng.choice(self.versions))
        filler = rng.randbytes(unit) if rng.random() < 0.2 else bytes(unit)
        parts = []
        for at in range(0, size, unit):
            part = rng.choice(self.versions)[at : at + unit]
            parts.append(part + filler[len(part) :])
        return b"".join(parts)[:size]


@dataclass
class Directory:
    """The names in it: those that are safe, and those of now."""

    safe: dict[str, int] = field(default_factory=dict)
    now: dict[str, int] = field(default_factory=dict)


Place = tuple[int, str]  # a directory and a name in it


@dataclass(frozen=True)
class NameChange:
    """A file got a name, lost one, or both. `node` is the file."""

    node: int
    gone: Place | None
    new: Place | None
    created: bool = False

    @property
    def safe_with(self) -> int:
        """The directory whose fsync makes the change safe."""
        place = self.new or self.gone
        assert place
        return place[0]


class Disk:
    """`before` is what the folder holds when the run begins: all of it is safe."""

    ROOT = -2

    def __init__(self, before: Tree) -> None:
        self._nodes: dict[int, File | Directory] = {self.ROOT: Directory()}
        self._pending: list[NameChange] = []
        self._own = iter(range(-3, -(10**9), -1))  # nodes of what was there before; those of a run are positive
        self._known: dict[int, int] = {}
        for path, content in sorted(before.items()):
            node = next(self._own)
            self._nodes[node] = Directory() if content is None else File([content])
            parent, name = self._place(path)
            self._directory(parent).safe[name] = self._directory(parent).now[name] = node

    # What a run does.

    def apply(self, call: Call) -> None:
        if call.name in NO_CHANGE:
            return
        getattr(self, f"_{call.name}")(call)  # a call that is not known here must be added, not passed over

    def _open(self, call: Call) -> None:
        if call.created:
            self._nodes[call.node] = File()
            self._rename_to(NameChange(call.node, None, self._place(call.path), created=True))
        elif call.truncated:
            self._file(call).resize(0)

    def _mkdir(self, call: Call) -> None:
        self._nodes[call.node] = Directory()
        self._rename_to(NameChange(call.node, None, self._place(call.path), created=True))

    def _rename(self, call: Call) -> None:
        old = self._place(call.path)
        self._rename_to(NameChange(self._at(old), old, self._place(call.target)))

    def _unlink(self, call: Call) -> None:
        old = self._place(call.path)
        self._rename_to(NameChange(self._at(old), old, None))

    _rmdir = _unlink

    def _pwrite(self, call: Call) -> None:
        assert call.data is not None
        self._file(call).write(call.data, call.offset)

    def _truncate(self, call: Call) -> None:
        self._file(call).resize(call.nbytes)

    def _fallocate(self, call: Call) -> None:
        self._file(call).resize(max(call.nbytes, len(self._file(call).versions[-1])))

    def _fsync(self, call: Call) -> None:
        node = self._node_of(call)
        found = self._nodes[node]
        if isinstance(found, File):
            found.sync()
            return
        for change in [c for c in self._pending if c.safe_with == node]:
            self._make_safe(change)

    _fdatasync = _fsync

    def _make_safe(self, change: NameChange) -> None:
        """Earlier changes of the same file's name are part of it."""
        at = self._pending.index(change)
        self._pending = [c for i, c in enumerate(self._pending) if i > at or c.node != change.node]
        _put(change, {n: d.safe for n, d in self._nodes.items() if isinstance(d, Directory)})

    # What is left.

    def after_crash(self, rng: random.Random) -> dict[str, bytes | None]:
        """A state that a power loss now may leave."""
        names = {n: dict(d.safe) for n, d in self._nodes.items() if isinstance(d, Directory)}
        created = {change.node for change in self._pending if change.created}
        for change in self._kept(rng):
            if change.created:
                created.discard(change.node)
            if change.node not in created:
                _put(change, names)
        return dict(self._walk(names, self.ROOT, PurePosixPath(), rng))

    def _kept(self, rng: random.Random) -> Iterable[NameChange]:
        kind = rng.choice(["all", "none", "up to one", "each for itself", "each for itself"])
        if kind == "each for itself":
            share = rng.random()
            return [change for change in self._pending if rng.random() < share]
        ends = {"all": len(self._pending), "none": 0, "up to one": rng.randrange(len(self._pending) + 1)}
        return self._pending[: ends[kind]]

    def _walk(
        self, names: Mapping[int, Mapping[str, int]], node: int, path: PurePosixPath, rng: random.Random
    ) -> Iterator[tuple[str, bytes | None]]:
        for name, child in sorted(names[node].items()):
            found = self._nodes[child]
            yield str(path / name), None if isinstance(found, Directory) else found.after_crash(rng)
            if isinstance(found, Directory):
                yield from self._walk(names, child, path / name, rng)

    # Names and nodes.

    def _rename_to(self, change: NameChange) -> None:
        _put(change, {n: d.now for n, d in self._nodes.items() if isinstance(d, Directory)})
        self._pending.append(change)

    def _place(self, path: str) -> Place:
        parts = PurePosixPath(path).parts
        node = self.ROOT
        for part in parts[:-1]:
            node = self._directory(node).now[part]
        return node, parts[-1]

    def _at(self, place: Place) -> int:
        return self._directory(place[0]).now[place[1]]

    def _directory(self, node: int) -> Directory:
        found = self._nodes[node]
        assert isinstance(found, Directory)
        return found

    def _node_of(self, call: Call) -> int:
        """The node of a call to a descriptor: what was there before has a number of its own here."""
        if call.node in self._nodes:
            return call.node
        if call.node not in self._known:
            self._known[call.node] = self._at(self._place(call.path)) if call.path else self.ROOT
        return self._known[call.node]

    def _file(self, call: Call) -> File:
        found = self._nodes[self._node_of(call)]
        assert isinstance(found, File)
        return found


def _put(change: NameChange, names: Mapping[int, dict[str, int]]) -> None:
    """Carries a change out on the names of all directories. A file has one name: the engine makes no hard links."""
    for found in names.values():
        for name in [name for name, node in found.items() if node == change.node]:
            del found[name]
    if change.new:
        names[change.new[0]][change.new[1]] = change.node


def lay_out(tree: Tree, folder: Path) -> None:
    """Makes the files of a state."""
    for path, content in sorted(tree.items()):
        if content is None:
            (folder / path).mkdir(parents=True, exist_ok=True)
        else:
            (folder / path).write_bytes(content)


def read(folder: Path) -> dict[str, bytes | None]:
    """The state that a folder is in."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}
