"""Compares a finished merge with its manifest: names, shapes, dtypes and digests of all tensors."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import _core, backends, system
from .errors import CheckpointError, shown
from .models import Checkpoint
from .models.documents import MANIFEST_LIMIT, read_json
from .models.names import MANIFEST
from .threads import thread_count

TILE_BYTES = 1 << 20


@dataclass(frozen=True)
class VerifyReport:
    """Result of `verify`.

    Attributes:
        tensors: number of tensors in the checkpoint.
        nbytes: bytes of those tensors.
        problems: one sentence for each difference from the manifest; empty if there is none.
    """

    tensors: int
    nbytes: int
    problems: tuple[str, ...]


def verify(out: str | Path, *, threads: int | None = None) -> VerifyReport:
    """Compares every tensor of a finished merge with the manifest: name, shape, dtype and digest.

    Args:
        out: the directory of the merged model.
        threads: number of worker threads. Default: the cores that this process may use.

    Returns:
        A VerifyReport. Differences are its `problems`, not errors.

    Raises:
        CheckpointError: the manifest is missing or damaged, or a file cannot be read.

    Example:
        >>> wm.verify("merged/").problems
        ()
    """
    path = Path(out)
    backends.choose("cpu")  # raises if the native module cannot be used as the environment asks
    expected = _expected(path / MANIFEST)
    checkpoint = Checkpoint(str(path.resolve()))
    try:
        problems = [f"tensor '{name}' is missing" for name in expected if name not in checkpoint.entries]
        problems += _differences(checkpoint, expected, thread_count(threads))
    finally:
        checkpoint.close()
    nbytes = sum(entry.nbytes for _, entry in checkpoint.entries.values())
    return VerifyReport(len(checkpoint.entries), nbytes, tuple(problems))


def _differences(checkpoint: Checkpoint, expected: dict[str, dict[str, Any]], threads: int) -> list[str]:
    problems = []
    pool = _core.Pool(threads, os.environ.get("WARPMERGE_ISA", ""))
    items = []
    for name, (shard, entry) in checkpoint.entries.items():
        record = expected.get(name)
        if record is None:
            problems.append(f"tensor '{name}' is not in the manifest")
        elif [entry.dtype.name, list(entry.shape)] != [record["dtype"], record["shape"]]:
            problems.append(
                f"tensor '{name}' is {entry.dtype} {list(entry.shape)}, but {_described(record)} in the manifest"
            )
        else:
            view = _core.View(0, file=shard.file, offset=entry.offset)
            items.append((name, record["digest"], pool.copy(view, entry.nbytes, TILE_BYTES, _core.Output(0))))
    with _core.Guard(pool.settle):
        launch = pool.submit([item for _, _, item in items])
        while not launch.wait(100):
            pass
    return problems + [
        f"tensor '{name}' does not have the digest of the manifest"
        for name, digest, item in items
        if f"{item.digest:016x}" != digest
    ]


def _described(record: dict[str, Any]) -> str:
    dtype = record["dtype"]
    return f"{dtype if isinstance(dtype, str) and len(dtype) < 20 else shown(dtype)} {shown(record['shape'])}"


def _expected(manifest: Path) -> dict[str, dict[str, Any]]:
    """Dtype, shape and digest of every tensor."""
    try:
        tensors = read_json(manifest, MANIFEST_LIMIT)["tensors"]
        return {name: {key: record[key] for key in ("dtype", "shape", "digest")} for name, record in tensors.items()}
    except (FileNotFoundError, NotADirectoryError):
        found = "" if system.is_directory(manifest.parent) else "is not a directory, so it "
        raise CheckpointError(
            f"{manifest.parent} {found}has no {MANIFEST}: it is not a finished merge of warpmerge."
        ) from None
    except OSError as error:
        raise CheckpointError(f"cannot read {manifest}: {error.strerror}.") from None
    except (ValueError, LookupError, TypeError, AttributeError):
        raise CheckpointError(f"{manifest} is damaged: it is no manifest of warpmerge.") from None
