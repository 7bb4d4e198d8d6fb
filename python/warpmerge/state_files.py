"""Files of running means: the saved state, and what is written of it. A file appears when it is complete."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .checkpoint import SINGLE, Checkpoint, OutputDirectory, layout, read_header
from .checkpoint.companions import donated
from .dtypes import BY_NAME, DType
from .errors import CheckpointError, OutputError
from .tasks import FileSink

KEY = "warpmerge.running"  # of the metadata that say what a state is
Spec = tuple[str, DType, tuple[int, ...]]


@dataclass(frozen=True)
class FileTarget:
    """A place in a file, to merge into like a `Result`."""

    dtype: DType
    fd: int
    offset: int

    def sink(self) -> FileSink:
        return FileSink(self.fd, self.offset)


@contextlib.contextmanager
def file_targets(
    path: Path, specs: Sequence[Spec], metadata: Mapping[str, str] = {"format": "pt"}
) -> Iterator[dict[str, FileTarget]]:
    """Where the tensors of a new file go. It takes its name when the block ends, and is dropped if that raises."""
    header, entries, size = layout(specs, metadata)
    hidden = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        fd = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        try:
            os.ftruncate(fd, size)
            os.pwrite(fd, header, 0)
            yield {name: FileTarget(e.dtype, fd, e.offset) for name, e in entries.items()}
            os.fsync(fd)
        finally:
            os.close(fd)
        hidden.replace(path)
        _sync_directory(path.parent)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}.") from None
    finally:
        with contextlib.suppress(OSError):
            hidden.unlink(missing_ok=True)


@contextlib.contextmanager
def directory_targets(path: Path, specs: Sequence[Spec], like: Path | None) -> Iterator[dict[str, FileTarget]]:
    """Where the tensors of a new model directory go, which is published with the small files of the model `like`."""
    header, entries, size = layout(specs, {"format": "pt"})
    files: dict[str, bytes] = {}
    if like is not None:
        model = Checkpoint(str(like))
        like = model.path
        dtypes = [dtype for _, dtype, _ in specs if dtype.is_float]
        files = donated(model.path, model.config(), dtypes[0] if dtypes else None)
    directory = OutputDirectory(path, inputs=[like] if like else [], overwrite=False, resume=False, sync=True)
    directory.open(KEY, size)
    try:
        fd = directory.shard(SINGLE, header, size)
        yield {name: FileTarget(e.dtype, fd, e.offset) for name, e in entries.items()}
        directory.finish_shard(SINGLE, {})
        directory.publish([SINGLE], None, files)
    except BaseException as error:
        directory.abort(keep=False)
        raise directory.error(error) if isinstance(error, OSError) else error from None


def write_state(path: Path, kind: str, count: int, options: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
    """tensors: on the host, torch's or numpy's. Raises OutputError."""
    arrays = {name: np.ascontiguousarray(tensor).reshape(tensor.shape) for name, tensor in tensors.items()}
    specs = [(name, BY_NAME[a.dtype.name], a.shape) for name, a in arrays.items()]
    metadata = {"format": "pt", KEY: json.dumps({"kind": kind, "count": count, "options": dict(options)})}
    with file_targets(path, specs, metadata) as targets:
        for name, target in targets.items():
            if arrays[name].size:
                target.sink().write(memoryview(arrays[name].reshape(-1).view(np.uint8)))


def read_state(path: Path, kind: str) -> tuple[int, dict[str, Any], dict[str, np.ndarray]]:
    """Count, options and tensors of a state of this kind. Raises CheckpointError."""
    try:
        entries, metadata = read_header(path)
        described = json.loads(metadata.get(KEY, "null"))
        if described is None:
            raise CheckpointError(f"{path} holds tensors, but not the state of a running mean; was it made by save?")
        found, count, options = described["kind"], described["count"], described["options"]
        if found != kind:
            raise CheckpointError(f"{path} holds the state of a {found}; load it with wm.{found}.load.")
        if type(count) is not int or count < 1 or not isinstance(options, dict):
            raise ValueError
        tensors = {}
        with open(path, "rb") as file:
            for name, entry in entries.items():
                file.seek(entry.offset)
                data = np.empty(entry.shape, entry.dtype.name)
                if file.readinto(data.reshape(-1).view(np.uint8)) != entry.nbytes:
                    raise ValueError
                tensors[name] = data
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}.") from None
    except (ValueError, LookupError, TypeError):
        raise CheckpointError(f"{path}: what it says of its state is damaged.") from None
    return count, options, tensors


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
