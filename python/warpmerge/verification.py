"""Checks a finished merge against its manifest."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from . import _core
from .checkpoint import Checkpoint
from .checkpoint.companions import MANIFEST
from .dtypes import BY_NAME
from .errors import CheckpointError
from .threads import thread_count

TILE_BYTES = 1 << 20


@dataclass(frozen=True)
class VerifyReport:
    tensors: int
    nbytes: int
    problems: tuple[str, ...]


def verify(out: str | Path, *, threads: int | None = None) -> VerifyReport:
    """Reads every tensor of the merged model in `out` and compares names, shapes, dtypes and digests with the manifest.

    Raises CheckpointError if there is no manifest or the files cannot be read; differences are listed in the report.
    """
    path = Path(out)
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        expected = manifest["tensors"]
    except FileNotFoundError:
        raise CheckpointError(f"{path} has no {MANIFEST}: it is not a finished merge of warpmerge.") from None
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path / MANIFEST} cannot be read ({error}).") from None
    checkpoint = Checkpoint(str(path.resolve()))
    pool = _core.Pool(thread_count(threads), os.environ.get("WARPMERGE_ISA", ""))
    problems = [f"tensor '{n}' is missing" for n in expected if n not in checkpoint.entries]
    items = []
    for name, (shard, entry) in checkpoint.entries.items():
        record = expected.get(name)
        if record is None:
            problems.append(f"tensor '{name}' is not in the manifest")
        elif [entry.dtype, list(entry.shape)] != [BY_NAME[record["dtype"]], record["shape"]]:
            problems.append(f"tensor '{name}' is {entry.dtype}{list(entry.shape)}, not as the manifest says")
        else:
            item = pool.copy(shard.address(entry), entry.nbytes, True, TILE_BYTES, _core.Output(0))
            items.append((name, record["digest"], item))
    launch = pool.submit([item for _, _, item in items])
    try:
        while not launch.wait(100):
            pass
    except OSError:
        raise CheckpointError(f"{path}: a file could not be read to its end.") from None
    for name, digest, item in items:
        if f"{item.digest:016x}" != digest:
            problems.append(f"tensor '{name}' does not have the digest of the manifest")
    nbytes = sum(entry.nbytes for _, entry in checkpoint.entries.values())
    checkpoint.close()
    return VerifyReport(len(checkpoint.entries), nbytes, tuple(problems))
