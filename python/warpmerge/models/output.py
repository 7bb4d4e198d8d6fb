"""The output directory. It looks complete only when it is.

While a merge runs, its files lie in a staging directory inside the output. `publish` moves them up, the index (or the
single weight file) last. So a directory with an index is complete. A journal in the staging directory names finished
shards, for --resume; when the files have begun to move up, the manifest does.
"""

from __future__ import annotations

import contextlib
import errno
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import _core, system
from ..errors import CheckpointError, MergeError, OutputError
from ..threads import thread_count
from ..units import show_size
from ..worker import Job, Worker
from .journal import JOURNAL, Claims, Journal, OutputShard, journal_claims, manifest_claims
from .leftovers import leftovers
from .names import INDEX, MANIFEST
from .places import check_place
from .publish import check_names, place, retire
from .reread import Rereader
from .sidecars import Content, write
from .staging import STAGING, Staging


def _ignored(nbytes: int) -> None:
    pass


class OutputDirectory:
    """Where a merge writes to.

    Attributes:
        finished: the same merge had already published here, and its weights are as it wrote them.
        published: the new model is complete.
    """

    def __init__(
        self,
        path: Path,
        *,
        inputs: Iterable[Path],
        overwrite: bool,
        resume: bool,
        sync: bool,
        fingerprint: str = "",
        threads: int | None = None,
    ) -> None:
        """`inputs`: directories that must not be written to. `sync`: data is on the disk when `publish` returns.
        `fingerprint`: of the merge, for `resume`. Raises OutputError if the directory cannot be used."""
        self.path = Path(path)
        self._staging = Staging(self.path)
        self.finished = self.published = False
        self._inputs, self._fingerprint = list(inputs), fingerprint
        self._overwrite, self._resume, self.sync = overwrite, resume, sync
        self._shards: dict[str, OutputShard] = {}
        self._index: bytes | None = None
        self._replaces = overwrite  # there may be files of another model, or of an earlier run of this merge
        self._owned = False  # the staging directory is this run's to change
        self._journal: Journal | None = None
        self._files: dict[str, Any] = {}
        self._kept: Claims = {}  # the finished shards
        self._in_place: set[str] = set()  # those of them that lie in the output
        self._staged: list[str] = []  # names of the small files
        self._finishing: list[Job] = []
        self._worker = Worker()
        self._rereader = Rereader(thread_count(threads))
        try:
            check_place(self.path, self._staging.path, self._inputs)
            self._refuse_existing(self._published_claims())
            leftovers(self.path)  # whether an old manifest can be read shows now, not after the merge
        except OutputError:
            raise
        except OSError as error:
            raise OutputError(f"cannot use the output {self.path}: {error.strerror}.") from None

    def _published_claims(self) -> Claims | None:
        return manifest_claims(self.path, self._fingerprint) if self._resume else None

    def _refuse_existing(self, own: Claims | None) -> None:
        """Raises OutputError if the directory holds files that this merge did not publish and may not replace."""
        if self._overwrite or own is not None or not system.exists(self.path):
            return
        if any(name != STAGING for name in system.calls.listdir(self.path)):
            raise OutputError(f"the output {self.path} is not empty; choose another directory or pass --overwrite.")

    def open(
        self,
        shards: Sequence[OutputShard],
        index: bytes | None,
        checked: Callable[[int], None] = _ignored,
    ) -> Claims:
        """Makes and locks the staging directory. Returns the shards that an interrupted run of the same merge finished,
        each with its tensors' digests in order: they were read again, and have these digests. Raises OutputError if the
        directory cannot be used or has no room.

        `checked` is called with the size of each shard that was read again.
        """
        self._shards = {shard.name: shard for shard in shards}
        self._index = index
        try:
            self._staging.lock(sync=self.sync)
            self._worker.start()
            check_place(self.path, self._staging.path, self._inputs)
            self._take_over(checked)
            if not self.finished:
                self._prepare()
        except OSError as error:
            raise self.error(error) from None
        return dict(self._kept)

    def _take_over(self, checked: Callable[[int], None]) -> None:
        """Finds out what an earlier run of the same merge has done, and whether it is as it was."""
        published = self._published_claims()
        self._refuse_existing(published)
        if published is not None:
            claims = published
        else:
            claims = journal_claims(self._staging.path, self._fingerprint, self._shards) if self._resume else {}
        self._replaces = self._overwrite or published is not None
        places = [self._staging.path] if published is None else [self.path, self._staging.path]
        for name, shard in self._shards.items():
            if name in claims:
                self._take_shard(shard, claims[name], places)
                checked(shard.nbytes)
        if published is not None and system.exists(self.path / self._last):
            self.finished = self._in_place == self._shards.keys() and self._index_is_right()
            if self.finished:
                self._settle()
            elif not self._overwrite:
                wrong = next((name for name in self._shards if name not in self._in_place), INDEX)
                raise OutputError(
                    f"{self.path / wrong} is not what this merge wrote; pass --overwrite to make it again."
                )

    def _take_shard(self, shard: OutputShard, digests: list[int], places: Sequence[Path]) -> None:
        """Keeps the shard if one of these directories has it as the claim says."""
        for directory in places:
            if self._rereader.holds(directory / shard.name, shard, digests, sync=self.sync):
                self._kept[shard.name] = digests
                if directory == self.path:
                    self._in_place.add(shard.name)
                return

    @property
    def _last(self) -> str:
        """The file that makes the output complete."""
        return next(iter(self._shards)) if self._index is None else INDEX

    def _index_is_right(self) -> bool:
        if self._index is None:
            return True
        try:
            return system.read_file(self.path / INDEX, len(self._index)) == self._index
        except OSError:
            return False

    def _prepare(self) -> None:
        """Empties the staging directory but for the shards that are kept, and begins a journal."""
        self._owned = True
        journal = {JOURNAL} if system.is_file(self._staging.path / JOURNAL, follow=False) else set()  # replaced at once
        self._staging.clean(self._kept.keys() | journal)
        self._journal = Journal(self._staging.path, self._fingerprint, self._kept, sync=self.sync)
        needed = sum(shard.nbytes for name, shard in self._shards.items() if name not in self._kept)
        free = system.calls.free(self.path)
        if needed > free:
            raise OutputError(
                f"no space for the output: {self.path} has {show_size(free)} free, but {show_size(needed)} are "
                "needed; free some space, or choose another disk."
            )

    def shard(self, name: str) -> Any:
        """The shard's file, a `_core.File`: header written, space reserved. Opened when first asked for."""
        file = self._files.get(name)
        if file is None:
            shard = self._shards[name]
            try:
                file = self._files[name] = _core.File(system.create(self._staging.path / name))
                system.reserve(file.fd, shard.nbytes)
                file.write(shard.header, 0)
            except OSError as error:
                raise self.error(error) from None
        return file

    def error(self, error: OSError) -> MergeError:
        """The error that a user sees after a failed write."""
        if isinstance(error, MergeError):
            return error
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return OutputError(
                f"no space left for the output in {self.path}. Free some space, then run again with --resume."
            )
        return OutputError(f"cannot write to {self.path}: {error.strerror or error}.")

    def finish_shard(self, name: str, digests: Sequence[int] | None = None) -> None:
        """All tensors of the shard are written; these are their digests, in order, if they are known."""
        file = self._files.pop(name)
        if not self.sync:
            self._close_shard(file, name, digests)
            return
        for job in self._finishing:
            if job.done:
                job.wait()  # a disk that fails is found while the merge goes on, not after it
        self._finishing = [job for job in self._finishing if not job.done]
        self._finishing.append(self._worker.submit(functools.partial(self._close_shard, file, name, digests)))

    def _close_shard(self, file: Any, name: str, digests: Sequence[int] | None) -> None:
        if self.sync:
            self._sync_shard(file, name, digests)
        file.close()
        self._kept[name] = list(digests or ())
        if self._journal:
            self._journal.add(name, self._kept[name])

    def _sync_shard(self, file: Any, name: str, digests: Sequence[int] | None) -> None:
        """Waits until the shard is on the disk. Meanwhile its tensors are read again: what the system writes must be
        what the workers computed."""
        if digests is None:
            system.calls.fdatasync(file.fd)
            return
        path = self._staging.path / name
        try:
            with self._rereader.reading(path, file, self._shards[name]) as result:
                system.calls.fdatasync(file.fd)
                found = result()
        except CheckpointError:
            found = []
        if found != list(digests):
            raise OutputError(f"{path} does not hold what was written to it; is its disk or the memory failing?")

    def stage(self, files: Mapping[str, Content]) -> None:
        """Writes small files that will be published with the shards. Raises OutputError, and CheckpointError if a
        companion has changed."""
        try:
            for name, content in files.items():
                write(self._staging.path / name, content, sync=self.sync)
        except OSError as error:
            raise self.error(error) from None
        self._staged += files

    def publish(self) -> None:
        """Moves everything into its place: the shards, the small files and the index. What has begun to move is moved
        to the end, whatever signals come. Raises OutputError."""
        try:
            for job in self._finishing:
                job.wait()
            if self._index is not None:
                self.stage({INDEX: self._index})
            names = [*self._staged, *(name for name in self._shards if name not in self._in_place)]
            names.sort(key=lambda name: (name == self._last, name != MANIFEST))
            check_names(self.path, names)
            if self._journal:
                self._journal.sync()
            with _core.Guard(self._worker.shutdown):
                self._worker.submit(functools.partial(self._place, names)).wait()
        except OSError as error:
            raise self.error(error) from None
        self.close()

    def _place(self, names: Sequence[str]) -> None:
        if self._replaces:
            retire(self.path, {*names, *self._shards}, sync=self.sync)
        place(self._staging.path, self.path, names, fresh=not self._replaces, sync=self.sync)
        self.published = True
        self._settle()

    def _settle(self) -> None:
        """Removes the staging directory of a complete output. If that fails, the output is none the worse."""
        with contextlib.suppress(OSError):
            system.remove(self._staging.path)

    def abort(self, keep: bool = True) -> int:
        """After a failure or Ctrl-C: keeps finished shards for --resume (if `keep`), removes the rest. Returns how many
        it kept. What is published stays."""
        self._worker.shutdown()
        done = self.published or self.finished
        kept = self._kept if keep and not done else {}
        with contextlib.suppress(OSError):  # the error that led here is the one to show
            if not self._owned:
                self._staging.give_back()
            elif kept.keys() - self._in_place:
                self._staging.clean(kept.keys() | {JOURNAL})
            elif not done:
                self._staging.remove()
        self.close()
        return len(kept)

    def close(self) -> None:
        """Gives up the lock and all descriptors. Errors are of no interest any more."""
        self._worker.shutdown()
        self._files.clear()
        self._journal = None
        self._staging.unlock()
