"""The output directory. It looks complete only when it is.

While a merge runs, its files lie in a staging directory inside the output. `publish` moves them up, the index (or the
single weight file) last. So a directory with an index is complete. A journal in the staging directory names finished
shards, for --resume.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .. import _core, system
from ..errors import MergeError, OutputError
from ..units import show_size
from .documents import JOURNAL_LIMIT, parse_json
from .leftovers import leftovers, remove_leftovers
from .names import INDEX, SINGLE
from .sidecars import Content, write

STAGING = ".warpmerge-partial"
JOURNAL = "journal"  # no suffix, so that no file taken over from a model has this name


class OutputDirectory:
    """`inputs`: directories that must not be written to. `sync`: data is on the disk when `publish` returns."""

    def __init__(self, path: Path, *, inputs: Iterable[Path], overwrite: bool, resume: bool, sync: bool) -> None:
        self.path = Path(path)
        self.staging = self.path / STAGING
        self._overwrite, self._resume, self.sync = overwrite, resume, sync
        self._lock: Any = None
        self._created = False
        self._files: dict[str, Any] = {}
        self._done: dict[str, Any] = {}  # the journal's records of the finished shards
        self._staged: list[str] = []  # names of the small files
        self._syncing: list[Future] = []
        self._syncer = ThreadPoolExecutor(1, "sync") if sync else None
        self._check(list(inputs))

    def _check(self, inputs: list[Path]) -> None:
        try:
            if self.path.exists() and not self.path.is_dir():
                raise OutputError(f"the output {self.path} is a file; choose another name.")
            here = Path(os.path.realpath(self.path))
            for source in inputs:
                there = Path(os.path.realpath(source))
                if there == here:
                    raise OutputError(f"the output {self.path} is also an input; choose another directory.")
                if there in here.parents:
                    raise OutputError(f"the output {self.path} lies in the input {source}; choose another directory.")
                for file in there.iterdir():
                    if os.path.dirname(os.path.realpath(file)) == str(here):
                        raise OutputError(f"{file} lies in the output {self.path}; choose another directory.")
            self._refuse_existing()
            self._old = leftovers(self.path) if self._overwrite else set()
        except OutputError:
            raise
        except OSError as error:
            raise OutputError(f"cannot use the output {self.path}: {error.strerror}.") from None

    def _refuse_existing(self) -> None:
        if self.path.is_dir() and not self._overwrite and any(p.name != STAGING for p in self.path.iterdir()):
            raise OutputError(f"the output {self.path} is not empty; choose another directory or pass --overwrite.")

    def open(self, fingerprint: str, needed: int) -> dict[str, list[int]]:
        """Makes and locks the staging directory. Returns the shards that an interrupted run of the same merge finished,
        each with its tensors' digests in order. Raises OutputError if there is no room for `needed` bytes."""
        try:
            self._created = not self.path.exists()
            self.staging.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.staging, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise OutputError(f"cannot make the output directory {self.path}: {error.strerror}.") from None
        if not self._locked():
            os.close(self._lock)
            self._lock = None
            raise OutputError(
                f"another merge is writing to {self.path}; wait for its end, or choose another directory."
            )
        done = self._done = self._finished(fingerprint) if self._resume else {}
        try:
            self._refuse_existing()
            for stale in self.staging.iterdir():
                if stale.name not in done:
                    _remove(stale)
            self._write_journal(fingerprint, *map(json.dumps, done.values()))
            needed -= sum(record["bytes"] for record in done.values())
            free = shutil.disk_usage(self.path).free
            if needed > free:
                raise OutputError(
                    f"no space for the output: {self.path} has {show_size(free)} free, but {show_size(needed)} are "
                    "needed; free some space, or choose another disk."
                )
        except BaseException as error:
            self.abort()
            raise self.error(error) if isinstance(error, OSError) else error from None
        return {name: _digests(record["digests"]) for name, record in done.items()}

    def _locked(self) -> bool:
        """Whether no other merge writes here. A file system without locks is trusted."""
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            pass
        try:
            # Another merge may have published, and removed what is locked here, since it was opened.
            return os.path.samestat(os.fstat(self._lock), self.staging.stat())
        except OSError:
            return False

    def _finished(self, fingerprint: str) -> dict[str, Any]:
        """The journal's shards that are there in full: `bytes` and `digests` of each."""
        done = {}
        try:
            sizes = {path.name: path.stat().st_size for path in self.staging.iterdir()}
            first, *records = system.read_file(self.staging / JOURNAL, JOURNAL_LIMIT).splitlines()
            for record in map(parse_json, records) if first == fingerprint.encode() else ():
                if _digests(record["digests"]) and sizes.get(record["name"]) == record["bytes"]:
                    done[record["name"]] = record
        except (OSError, ValueError, LookupError, TypeError):
            pass  # no journal, or its last line was being written when the machine stopped
        return done

    def shard(self, name: str, header: bytes, nbytes: int) -> Any:
        """The shard's file, a `_core.File`: header written, space reserved. Opened when first asked for."""
        file = self._files.get(name)
        if file is None:
            try:
                file = _core.File(system.calls.open(self.staging / name, os.O_RDWR | os.O_CREAT | os.O_TRUNC))
                self._files[name] = file
                system.reserve(file.fd, nbytes)
                file.write(header, 0)
            except OSError as error:
                raise self.error(error) from None
        return file

    def error(self, error: OSError) -> MergeError:
        """The error that a user sees after a failed write."""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return OutputError(
                f"no space left for the output in {self.path}. Free some space, then run again with --resume."
            )
        return OutputError(f"cannot write to {self.path}: {error.strerror or error}.")

    def finish_shard(self, name: str, digests: Sequence[int]) -> None:
        """All tensors of the shard are written; these are their digests, in order."""
        file = self._files.pop(name)
        if self._syncer is None:
            self._close_shard(file, name, digests)
        else:
            self._syncing.append(self._syncer.submit(self._close_shard, file, name, digests))

    def _close_shard(self, file: Any, name: str, digests: Sequence[int]) -> None:
        try:
            if self.sync:
                system.calls.fdatasync(file.fd)
            nbytes = system.calls.fstat(file.fd).st_size
        finally:
            file.close()
        self._done[name] = {"name": name, "bytes": nbytes, "digests": "".join(f"{d:016x}" for d in digests)}
        self._write_journal(json.dumps(self._done[name]))

    def _write_journal(self, *lines: str) -> None:
        """Adds lines to the journal: first the merge's fingerprint, then one line for each shard."""
        with open(self.staging / JOURNAL, "a", encoding="utf-8") as file:
            file.writelines(line + "\n" for line in lines)

    def stage(self, files: Mapping[str, Content]) -> None:
        """Writes small files that will be published with the shards."""
        try:
            for name, content in files.items():
                write(self.staging / name, content, sync=self.sync)
        except OSError as error:
            raise self.error(error) from None
        self._staged += files

    def publish(self, shards: list[str], index: Mapping[str, Any] | None) -> None:
        """Moves everything into its place; the index, or the only shard, last."""
        try:
            for future in self._syncing:
                future.result()
            if index is not None:
                write(self.staging / INDEX, _index_text(index).encode(), sync=self.sync)
            last = INDEX if index is not None else SINGLE
            names = [*self._staged, *(s for s in shards if s != last), last]
            for name in names:
                if (self.path / name).is_dir():
                    raise OutputError(
                        f"{self.path / name} is a directory, but a file of that name is to be written; remove it."
                    )
            if self._overwrite:
                self._retire_old(set(names))
            self._move(names)
            self._done.clear()
            _remove(self.staging)
            if self.sync:
                system.sync_directory(self.path)
                if self._created:
                    system.sync_directory(self.path.parent)
        except OSError as error:
            raise self.error(error) from None
        self.close()

    def _move(self, names: list[str]) -> None:
        """Moves files from the staging directory to the output, in this order. If one move fails, all are undone."""
        try:
            for name in names:
                (self.staging / name).replace(self.path / name)
        except BaseException:
            if (self.staging / names[-1]).exists():
                for name in names:
                    if not (self.staging / name).exists():
                        (self.path / name).replace(self.staging / name)
            raise

    def _retire_old(self, new: set[str]) -> None:
        """Before the first file of the new model appears, the old one stops looking complete. Shards, a tokenizer and
        the like that the new one does not have go as well."""
        for name in (INDEX, SINGLE):
            (self.path / name).unlink(missing_ok=True)
        remove_leftovers(self.path, self._old - new)

    def abort(self, keep: bool = True) -> int:
        """After a failure or Ctrl-C: keeps finished shards for --resume (if `keep`), removes the rest. Returns how many
        it kept."""
        self._files.clear()
        for future in self._syncing:
            with contextlib.suppress(Exception):
                future.result()
        kept = self._done if keep else {}
        with contextlib.suppress(OSError):  # the error that led here is the one to show
            if kept:
                for path in self.staging.iterdir():
                    if path.name not in kept and path.name != JOURNAL:
                        _remove(path)
            else:
                _remove(self.staging)
                if self._created:
                    self.path.rmdir()
        self.close()
        return len(kept)

    def close(self) -> None:
        if self._syncer:
            self._syncer.shutdown()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _digests(text: str) -> list[int]:
    """The journal's digests of a shard: 16 digits each, in the order of its tensors."""
    return [int(text[at : at + 16], 16) for at in range(0, len(text), 16)]


def _index_text(index: Mapping[str, Any]) -> str:
    """The text that json.dumps makes with an indent of 2. The long map is written by C code."""
    quoted = json.encoder.encode_basestring_ascii
    entries = ",".join([f"\n    {quoted(name)}: {quoted(file)}" for name, file in index["weight_map"].items()])
    rest = {name: value for name, value in index.items() if name != "weight_map"}
    text = json.dumps(rest, indent=2).removesuffix("\n}")
    return f'{text},\n  "weight_map": {{{entries}\n  }}\n}}\n'


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
