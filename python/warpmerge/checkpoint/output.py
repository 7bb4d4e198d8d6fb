"""The output directory: nothing in it looks complete before everything is.

While a merge runs, its files lie in a staging directory inside the output. Publishing moves them up, and the index (or
the single weight file) last: a directory that has one is complete.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ..errors import MergeError, OutputError
from .source import INDEX, SINGLE

STAGING = ".warpmerge-partial"
JOURNAL = "journal.json"


class OutputDirectory:
    """`inputs`: directories that must not be written to. `sync`: data is on the disk when `publish` returns."""

    def __init__(self, path: Path, *, inputs: Iterable[Path], overwrite: bool, resume: bool, sync: bool) -> None:
        self.path = Path(path)
        self.staging = self.path / STAGING
        self._overwrite, self._resume, self._sync = overwrite, resume, sync
        self._lock: int | None = None
        self._created = False
        self._fds: dict[str, int] = {}
        self._journal: dict[str, Any] = {}
        self._syncing: list[Future] = []
        self._syncer = ThreadPoolExecutor(1, "sync") if sync else None
        self._check(list(inputs))

    def _check(self, inputs: list[Path]) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise OutputError(f"the output {self.path} exists and is not a directory.")
        here = self.path.resolve()
        for source in inputs:
            if source.resolve() == here:
                raise OutputError(f"the output {self.path} is also an input; choose another directory.")
        if self.path.is_dir() and not self._overwrite and any(p.name != STAGING for p in self.path.iterdir()):
            raise OutputError(f"the output {self.path} is not empty; choose another directory or pass --overwrite.")

    def open(self, fingerprint: str, needed: int) -> dict[str, dict[str, str]]:
        """Makes and locks the staging directory. Returns the shards that an interrupted run of the same merge finished,
        each with its tensors' digests. Raises OutputError if there is no room for `needed` bytes."""
        try:
            self._created = not self.path.exists()
            self.staging.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.staging, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise OutputError(f"cannot make the output directory {self.path}: {error.strerror}.") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            self._lock = None
            raise OutputError(f"another merge is writing to {self.path}.") from None
        done = self._finished(fingerprint) if self._resume else {}
        for stale in self.staging.iterdir():
            if stale.name not in done and stale.name != JOURNAL:
                _remove(stale)
        self._journal = {"fingerprint": fingerprint, "shards": dict(done)}
        needed -= sum((self.staging / name).stat().st_size for name in done)
        free = shutil.disk_usage(self.path).free
        if needed > free:
            self.abort()
            raise OutputError(f"no space for the output: {self.path} has {free:,} bytes free, {needed:,} are needed.")
        return done

    def _finished(self, fingerprint: str) -> dict[str, dict[str, str]]:
        try:
            journal = json.loads((self.staging / JOURNAL).read_text())
            if journal["fingerprint"] != fingerprint:
                return {}
            return {n: d for n, d in journal["shards"].items() if (self.staging / n).is_file()}
        except (OSError, ValueError, KeyError):
            return {}

    def shard(self, name: str, header: bytes, nbytes: int) -> int:
        """A descriptor of the shard's file: header written, space reserved. Opened when first asked for."""
        fd = self._fds.get(name)
        if fd is None:
            try:
                fd = os.open(self.staging / name, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
                self._fds[name] = fd
                os.posix_fallocate(fd, 0, nbytes)
                os.pwrite(fd, header, 0)
            except OSError as error:
                raise self.error(error) from None
        return fd

    def error(self, error: OSError) -> MergeError:
        """What a failed write means, in the user's terms."""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return OutputError(f"no space left for the output in {self.path}. Free some, then run again with --resume.")
        return OutputError(f"cannot write to {self.path}: {error.strerror or error}.")

    def finish_shard(self, name: str, digests: Mapping[str, str]) -> None:
        """All tensors of the shard are written."""
        fd = self._fds.pop(name)
        if self._syncer is None:
            self._close_shard(fd, name, digests)
        else:
            self._syncing.append(self._syncer.submit(self._close_shard, fd, name, digests))

    def _close_shard(self, fd: int, name: str, digests: Mapping[str, str]) -> None:
        try:
            if self._sync:
                os.fdatasync(fd)
        finally:
            os.close(fd)
        self._journal["shards"][name] = dict(digests)
        temporary = self.staging / (JOURNAL + ".tmp")
        temporary.write_text(json.dumps(self._journal))
        temporary.replace(self.staging / JOURNAL)

    def publish(self, shards: list[str], index: Mapping[str, Any] | None, others: Mapping[str, bytes]) -> None:
        """Moves everything in place; the index, or the only shard, last."""
        try:
            for future in self._syncing:
                future.result()
            self._write_all(others)
            if index is not None:
                self._write_all({INDEX: (json.dumps(index, indent=2) + "\n").encode()})
            last = INDEX if index is not None else SINGLE
            if self._overwrite:
                self._retire_old({*shards, *others, last})
            for name in [*others, *(s for s in shards if s != last), last]:
                (self.staging / name).replace(self.path / name)
            _remove(self.staging)
            if self._sync:
                directory = os.open(self.path, os.O_RDONLY)
                os.fsync(directory)
                os.close(directory)
        except OSError as error:
            raise self.error(error) from None
        self.close()

    def _write_all(self, files: Mapping[str, bytes]) -> None:
        for name, data in files.items():
            with open(self.staging / name, "wb") as file:
                file.write(data)
                if self._sync:
                    file.flush()
                    os.fsync(file.fileno())

    def _retire_old(self, new: set[str]) -> None:
        """Before the first file of the new model appears, the old one stops looking complete."""
        for name in (INDEX, SINGLE):
            with contextlib.suppress(FileNotFoundError):
                (self.path / name).unlink()
        for old in self.path.glob("model-*-of-*.safetensors"):
            if old.name not in new:
                old.unlink()

    def abort(self) -> int:
        """After a failure or Ctrl-C: keeps finished shards for --resume, removes the rest. Returns how many are kept."""
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()
        for future in self._syncing:
            with contextlib.suppress(Exception):
                future.result()
        kept = self._journal.get("shards", {})
        if kept:
            for path in self.staging.iterdir():
                if path.name not in kept and path.name != JOURNAL:
                    _remove(path)
        elif self.staging.exists():
            _remove(self.staging)
            if self._created:
                with contextlib.suppress(OSError):
                    self.path.rmdir()
        self.close()
        return len(kept)

    def close(self) -> None:
        if self._syncer:
            self._syncer.shutdown()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
