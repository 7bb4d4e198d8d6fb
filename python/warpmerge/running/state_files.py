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

from .. import _core, system
from ..dtypes import FLOAT32, FLOAT64, DType
from ..engine.arrays import FileArray
from ..errors import CheckpointError, OutputError
from ..models import SINGLE, Checkpoint, OutputDirectory, OutputShard, Shard, layout
from ..models.documents import parse_json
from ..models.sidecars import Content, taken_over
from ..tasks import FileSink

KEY = "warpmerge.running"  # of the metadata that say what a state is
CHUNK = 16 << 20  # bytes that are copied at a time
Spec = tuple[str, DType, tuple[int, ...]]


@dataclass(frozen=True)
class FileTarget:
    """A place in a file, to merge into like a `Result`."""

    dtype: DType
    file: Any  # a _core.File
    offset: int

    def sink(self) -> FileSink:
        return FileSink(self.file, self.offset)


@contextlib.contextmanager
def file_targets(
    path: Path, specs: Sequence[Spec], metadata: Mapping[str, str] = {"format": "pt"}
) -> Iterator[dict[str, FileTarget]]:
    """Where the tensors of a new file go. It takes its name when the block ends, and is dropped if that raises."""
    header, columns, size = layout(specs, metadata)
    hidden = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with contextlib.suppress(FileNotFoundError):
            system.calls.unlink(hidden)  # of an earlier process with this number
        file = _core.File(system.create(hidden))
        system.calls.truncate(file.fd, size)
        file.write(header, 0)
        yield {name: FileTarget(e.dtype, file, e.offset) for name, e in columns.by_name().items()}
        system.calls.fsync(file.fd)
        file.close()
        system.calls.rename(hidden, path)
        system.sync_directory(path.parent)
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}.") from None
    finally:
        with contextlib.suppress(OSError):
            system.calls.unlink(hidden)


@contextlib.contextmanager
def directory_targets(path: Path, specs: Sequence[Spec], like: Path | None) -> Iterator[dict[str, FileTarget]]:
    """Where the tensors of a new model directory go, which is published with the small files of the model `like`."""
    header, columns, size = layout(specs, {"format": "pt"})
    files: dict[str, Content] = {}
    if like is not None:
        model = Checkpoint(str(like))
        like = model.path
        dtypes = [dtype for _, dtype, _ in specs if dtype.is_float]
        files = taken_over(model, dtypes[0] if dtypes else None)
    directory = OutputDirectory(path, inputs=[like] if like else [], overwrite=False, resume=False, sync=True)
    try:
        directory.open([OutputShard(SINGLE, header, size)], None)
        directory.stage(files)
        file = directory.shard(SINGLE)
        yield {name: FileTarget(e.dtype, file, e.offset) for name, e in columns.by_name().items()}
        directory.finish_shard(SINGLE)
        directory.publish()
    except BaseException as error:
        directory.abort(keep=False)
        raise directory.error(error) if isinstance(error, OSError) else error from None


def key(parts: Sequence[str], part: str, name: str) -> str:
    """What a tensor is called in the file of a state. A state of one part has the names of a checkpoint."""
    return name if len(parts) == 1 else f"{part}:{name}"


def described(kind: str, count: int, options: Mapping[str, Any]) -> dict[str, str]:
    """The metadata of a state's file."""
    return {"format": "pt", KEY: json.dumps({"kind": kind, "count": count, "options": dict(options)})}


def write_state(path: Path, metadata: Mapping[str, str], arrays: Mapping[str, Any]) -> None:
    """Copies the arrays into a new file. Raises OutputError."""
    specs = [(name, array.dtype, array.shape) for name, array in arrays.items()]
    with file_targets(path, specs, metadata) as targets:
        for name, target in targets.items():
            at = target.offset
            for data in arrays[name].view().chunks(CHUNK):
                FileSink(target.file, at).write(memoryview(data))
                at += len(data)


def open_state(
    path: Path, kind: str, parts: Sequence[str]
) -> tuple[int, dict[str, Any], dict[str, dict[str, FileArray]], Shard]:
    """Count, options and tensors of a state of this kind, in their file. Raises CheckpointError."""
    shard = Shard(path)
    text = shard.metadata.get(KEY)
    if text is None:
        raise CheckpointError(f"{path} holds no state of running means; was it made by save?")
    try:
        saved = parse_json(text.encode())
        found, count, options = saved["kind"], saved["count"], saved["options"]
        if type(count) is not int or count < 1 or not isinstance(options, dict):
            raise ValueError
    except (ValueError, LookupError, TypeError):
        raise CheckpointError(f"{path}: its header is damaged; use another copy.") from None
    if found != kind:
        raise CheckpointError(f"{path} holds the state of a {found}; load it with wm.{found}.load.")
    state: dict[str, dict[str, FileArray]] = {part: {} for part in parts}
    for name, entry in shard.entries.items():
        part, _, rest = ("", "", name) if len(parts) == 1 else name.partition(":")
        state.setdefault(part or parts[0], {})[rest] = FileArray(shard, entry)
    first, *others = state.values()
    floats = {name: (a.shape, a.dtype) for name, a in first.items() if a.dtype.is_float}
    fp64 = all(dtype in (FLOAT32, FLOAT64) for _, dtype in floats.values())
    if not (
        first
        and fp64
        and len(state) == len(parts)
        and all({n: (a.shape, a.dtype) for n, a in p.items()} == floats for p in others)
    ):
        raise CheckpointError(f"{path}: its tensors are not those of a {kind}; it is damaged.")
    return count, options, state, shard


def in_memory(array: FileArray) -> np.ndarray:
    made = np.empty(array.shape, array.dtype.name)
    flat = made.reshape(-1).view(np.uint8)
    at = 0
    for data in array.view().chunks(CHUNK):
        flat[at : at + len(data)] = np.frombuffer(data, np.uint8)
        at += len(data)
    return made
