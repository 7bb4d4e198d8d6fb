"""Shards that are read again: whether a file holds what was written to it."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from .. import _core, system
from ..errors import CheckpointError
from .journal import OutputShard
from .safetensors import read_columns

TILE_BYTES = 1 << 20


class Rereader:
    """Threads that digest the tensors of shards."""

    def __init__(self, threads: int) -> None:
        self._threads = threads

    @cached_property
    def _pool(self) -> Any:
        return _core.Pool(self._threads, os.environ.get("WARPMERGE_ISA", ""))

    @contextlib.contextmanager
    def reading(self, path: Path, file: Any, shard: OutputShard) -> Iterator[Callable[[], list[int]]]:
        """All tensors of an open shard are read within the block. What it yields waits, and returns their digests in
        order. Raises CheckpointError if the shard has another header."""
        if system.read_at(file.fd, len(shard.header), 0) != shard.header:
            raise CheckpointError(f"{path} has another header.")
        columns, _ = read_columns(path)
        places = zip(columns.offsets, columns.sizes, strict=True)
        with _core.Guard(self._pool.settle):
            items = [
                self._pool.copy(_core.View(0, file=file, offset=offset), nbytes, TILE_BYTES, _core.Output(0))
                for offset, nbytes in places
            ]
            launch = self._pool.submit(items)

            def result() -> list[int]:
                while not launch.wait(100):
                    pass
                return [item.digest for item in items]

            yield result

    def holds(self, path: Path, shard: OutputShard, digests: Sequence[int], *, sync: bool) -> bool:
        """Whether a regular file has the shard's header and size, and tensors of these digests. `sync`: it is on the
        disk then."""
        try:
            if not stat.S_ISREG(system.calls.lstat(path).st_mode):
                return False
            file = _core.File(system.open_regular(path))
            if system.calls.fstat(file.fd).st_size != shard.nbytes:
                return False
            with self.reading(path, file, shard) as result:
                if result() != list(digests):
                    return False
            if sync:
                system.calls.fdatasync(file.fd)
            return True
        except (OSError, CheckpointError):
            return False
