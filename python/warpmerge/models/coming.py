"""A model that another merge is going to write, as an input of a plan: everything is known of it but its elements."""

from __future__ import annotations

import os
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import _core, system
from .checkpoint import TensorFiles
from .reference import ModelRef
from .safetensors import Columns


class ComingShard:
    """A shard that does not exist yet (see `checkpoint.Shard`)."""

    digests: dict[str, str] = {}  # noqa: RUF012

    def __init__(self, path: Path, size: int) -> None:
        self.path, self.size = path, size
        self.identity = system.Identity(0, 0, size, 0, 0)
        self.file = _core.File(os.fsencode(path), self.identity)

    def check(self) -> None:
        """There is nothing that could have changed."""

    def close(self) -> None:
        """It was never open."""


class ComingCheckpoint(TensorFiles):
    """A model directory that does not exist yet (see `checkpoint.Checkpoint`).

    Args:
        ref: what the recipe calls it.
        path: the directory that its companions come from.
        columns, shard_of: its tensors, and the shard of each.
        shards: names and sizes of its files.
        config: its config.
        files: its small files by name (models.sidecars).
    """

    def __init__(
        self,
        ref: ModelRef,
        path: Path,
        columns: Columns,
        shard_of: array[int],
        shards: list[tuple[str, int]],
        config: dict[str, Any],
        files: Mapping[str, Any],
    ) -> None:
        self.ref, self.path, self.columns, self.shard_of = ref, path, columns, shard_of
        self.shards: list[Any] = [ComingShard(Path(name), size) for name, size in shards]
        self._config, self._files = config, files

    @property
    def title(self) -> str:
        return f"document '{self.ref}'"

    def companions(self) -> Mapping[str, Any]:
        return self._files

    def is_quantized(self) -> bool:
        return False

    def config(self) -> dict[str, Any]:
        return self._config

    def __str__(self) -> str:
        return str(self.ref)
