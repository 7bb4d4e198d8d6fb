"""A model directory as a source: its index, its shards, and its tensors as mapped memory."""

from __future__ import annotations

import json
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError, RecipeError, close_matches
from ..recipe import ModelRef
from .safetensors import TensorEntry, read_header

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


class Shard:
    """One safetensors file, mapped when first used."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.entries, self.metadata = read_header(path)
            stat = path.stat()
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror}.") from None
        self.size, self.mtime_ns = stat.st_size, stat.st_mtime_ns
        self.identity = (stat.st_dev, stat.st_ino)
        self._fd: int | None = None
        self._map: mmap.mmap | None = None
        self._address = 0

    @property
    def fd(self) -> int:
        if self._fd is None:
            self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        return self._fd

    def address(self, entry: TensorEntry) -> int:
        """Where the tensor's first byte is mapped. Raises CheckpointError if the file changed since its header was read."""
        if self._map is None:
            if os.fstat(self.fd).st_size != self.size:
                raise CheckpointError(f"{self.path} changed while it was being read.")
            self._map = mmap.mmap(self.fd, 0, access=mmap.ACCESS_READ)
            self._address = np.frombuffer(self._map, dtype=np.uint8).ctypes.data
        return self._address + entry.offset

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
        self._fd = self._map = None


class Checkpoint:
    """A model directory: `entries` maps each tensor to its shard and place, in the order of shards and data."""

    def __init__(self, ref: ModelRef | str) -> None:
        self.ref = ref if isinstance(ref, ModelRef) else ModelRef(str(ref))
        self.path = resolve(self.ref)
        self.shards = [Shard(path) for path in self._shard_paths()]
        self.entries: dict[str, tuple[Shard, TensorEntry]] = {}
        for shard in self.shards:
            for name, entry in shard.entries.items():
                if name in self.entries:
                    raise CheckpointError(
                        f"{self.path}: tensor '{name}' is in both {self.entries[name][0].path.name} and {shard.path.name}."
                    )
                self.entries[name] = (shard, entry)
        self._check_index()

    def __str__(self) -> str:
        return str(self.ref)

    def _shard_paths(self) -> list[Path]:
        self._weight_map: dict[str, str] | None = None
        index = self.path / INDEX
        if not index.is_file():
            return [self.path / SINGLE]
        try:
            document = json.loads(index.read_text(encoding="utf-8"))
            self._weight_map = document["weight_map"]
            names = sorted(set(self._weight_map.values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{index}: not a valid index ({type(error).__name__}: {error}).") from None
        paths = []
        for name in names:
            if not isinstance(name, str) or Path(name).name != name or name in ("", ".", ".."):
                raise CheckpointError(f"{index}: '{name}' is not the name of a file in this directory.")
            if not (self.path / name).is_file():
                raise CheckpointError(f"{index}: it names {name}, which is missing. Download the model again.")
            paths.append(self.path / name)
        return paths

    def _check_index(self) -> None:
        for name, file in (self._weight_map or {}).items():
            if name not in self.entries or self.entries[name][0].path.name != file:
                raise CheckpointError(f"{self.path / INDEX}: tensor '{name}' is not in {file}, where the index says.")

    def config(self) -> dict[str, Any]:
        """The parsed config.json, empty if there is none."""
        path = self.path / "config.json"
        if not path.is_file():
            return {}
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: not valid JSON ({error}).") from None

    def close(self) -> None:
        for shard in self.shards:
            shard.close()


def resolve(ref: ModelRef) -> Path:
    """The directory of a model: a path, else the hub's cache, else a download. Raises RecipeError if there is none."""
    path = Path(ref.path).expanduser()
    if path.is_dir() and ref.revision is None:
        return _with_weights(path)
    if path.is_file():
        raise RecipeError(f"model '{ref}' is a file; give the directory that holds it.")
    looks_local = ref.path.startswith((".", "/", "~")) or ref.path.count("/") > 1
    if not looks_local and (snapshot := _hub(ref)):
        return _with_weights(snapshot)
    parent = path.parent
    siblings = [p.name for p in parent.iterdir() if p.is_dir()] if parent.is_dir() else []
    near = close_matches(path.name, siblings)
    hub = "" if looks_local else ", nor can it be had from the Hugging Face hub"
    raise RecipeError(f"model '{ref}' is not a directory{hub}{near or '.'}")


def _with_weights(path: Path) -> Path:
    if (path / INDEX).is_file() or (path / SINGLE).is_file():
        return path
    if list(path.glob("pytorch_model*.bin")):
        raise CheckpointError(f"{path} holds only pytorch_model*.bin; convert it to safetensors first.")
    raise CheckpointError(f"{path} holds neither {INDEX} nor {SINGLE}.")


def _hub(ref: ModelRef) -> Path | None:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError
    except ImportError:
        return None
    patterns = ["*.safetensors", "*.json", "*.model", "*.jinja", "*.txt", "*.tiktoken", "*.py"]
    for local_only in (True, False):
        try:
            return Path(
                snapshot_download(ref.path, revision=ref.revision, local_files_only=local_only, allow_patterns=patterns)
            )
        except HFValidationError:
            return None
        except Exception:  # the hub's errors share no base: whatever it was, the model is not there
            continue
    return None
