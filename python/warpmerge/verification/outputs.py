"""Compares a finished merge with its manifest: names, shapes, dtypes, digests; and with what the reference merges."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import _core, backends
from ..errors import UsageError, enough_memory, shown
from ..models import Checkpoint, TensorEntry, allow_open_files
from ..threads import thread_count
from ..units import parse_share
from .manifest import Manifest, Record
from .sampling import chosen_seed, parse_count, share_of

TILE_BYTES = 1 << 20


@dataclass(frozen=True)
class Checked:
    """Tensors that `verify` looked at.

    Attributes:
        names: their names.
        nbytes: their bytes.
    """

    names: tuple[str, ...]
    nbytes: int


@dataclass(frozen=True)
class VerifyReport:
    """Result of `verify`.

    Attributes:
        tensors: number of tensors in the checkpoint.
        nbytes: bytes of those tensors.
        problems: one sentence for each difference; empty if there is none.
        out: the directory of the merged model.
        digests: Checked, the tensors whose bytes were compared with their digests in the manifest.
        recomputed: Checked, the tensors that were merged again; None without `recompute`.
        seed: int, the seed by which tensors were chosen; None if none were.
    """

    tensors: int
    nbytes: int
    problems: tuple[str, ...]
    out: Path
    digests: Checked
    recomputed: Checked | None = None
    seed: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """The attributes as a dictionary that JSON can hold. Names are listed if only some tensors were looked at."""
        return {
            "out": str(self.out),
            "tensors": self.tensors,
            "nbytes": self.nbytes,
            "problems": list(self.problems),
            "digests": self._shown(self.digests),
            "recomputed": None if self.recomputed is None else self._shown(self.recomputed),
            "seed": self.seed,
        }

    def _shown(self, checked: Checked) -> dict[str, Any]:
        names = {} if len(checked.names) == self.tensors else {"names": list(checked.names)}
        return {"tensors": len(checked.names), "nbytes": checked.nbytes, **names}


@enough_memory()
def verify(
    out: str | Path,
    *,
    threads: int | None = None,
    sample: float | str | None = None,
    recompute: int | str | None = None,
    models: Mapping[str, str | Path] | None = None,
    seed: int | None = None,
) -> VerifyReport:
    """Compares the tensors of a finished merge with the manifest: names, shapes, dtypes and digests.

    Args:
        out: the directory of the merged model.
        threads: number of worker threads. Default: the cores that this process may use.
        sample: the share of the bytes whose digests are compared, such as `"5%"` or 0.05; tensors are chosen at random.
            Names, shapes and dtypes are always compared. None: all.
        recompute: a number of tensors, chosen at random, or `"all"`. They are merged again by the reference backend, as
            the manifest's recipe says, and each bit is compared. This needs torch, the models, and about 100 bytes of
            memory for each element of the largest tensor. A method with `scope: model` measures all of the models.
            None: nothing is merged again.
        models: for `recompute`: where models are that have moved, from the old to the new place. The old place is the
            model's name in the recipe, its directory in the manifest, or a directory above that.
        seed: of the choice of tensors. The same seed chooses the same ones. None: another one for each call.

    Returns:
        A VerifyReport. Differences are its `problems`, not errors.

    Raises:
        UsageError: an argument is wrong, or torch is missing.
        CheckpointError: the manifest is missing or damaged, a file cannot be read, or a model is not the one that was
            merged.

    Example:
        >>> wm.verify("merged/", sample="5%", recompute=10).problems
        ()
    """
    share = 1.0 if sample is None else parse_share(sample, "sample")
    count = None if recompute is None else parse_count(recompute, "recompute")
    if models and recompute is None:
        raise UsageError("models says for recompute where models are now; ask for that as well.")
    used_seed = chosen_seed(seed)
    path = Path(out)
    backends.choose("cpu")  # raises if the native module cannot be used as the environment asks
    if recompute is not None:
        backends.choose("torch")
    manifest = Manifest(path)
    checkpoint = Checkpoint(str(path.resolve()))
    try:
        allow_open_files(len(checkpoint.shards))
        problems, comparable = _compared(checkpoint, manifest)
        places = share_of([entry.nbytes for entry in comparable], share, used_seed)
        chosen = [comparable[place] for place in places]
        problems += _differences(checkpoint, manifest, chosen, thread_count(threads))
        again = None
        if recompute is not None:
            from .recompute import recompute as merge_again

            names, found = merge_again(manifest, checkpoint, count, used_seed, models or {}, threads)
            problems += found
            again = _checked([checkpoint.entries[name][1] for name in names])
        checkpoint.check()  # what was written to while it was read is neither the old nor the new model
        return VerifyReport(
            len(checkpoint.names),
            sum(checkpoint.columns.sizes),
            tuple(problems),
            path,
            _checked(chosen),
            again,
            None if sample is None and count is None else used_seed,
        )
    finally:
        checkpoint.close()


def _checked(entries: Sequence[TensorEntry]) -> Checked:
    return Checked(tuple(entry.name for entry in entries), sum(entry.nbytes for entry in entries))


def _compared(checkpoint: Checkpoint, manifest: Manifest) -> tuple[list[str], list[TensorEntry]]:
    """Problems of names, dtypes and shapes, and the tensors that have none."""
    problems = [f"tensor '{name}' is missing" for name in manifest.tensors if name not in checkpoint.rows]
    fitting = []
    for _, entry in checkpoint.entries.values():
        record = manifest.tensors.get(entry.name)
        if record is None:
            problems.append(f"tensor '{entry.name}' is not in the manifest")
        elif [entry.dtype.name, list(entry.shape)] != [record.dtype, record.shape]:
            problems.append(
                f"tensor '{entry.name}' is {entry.dtype} {list(entry.shape)}, but {_described(record)} in the manifest"
            )
        else:
            fitting.append(entry)
    return problems, fitting


def _described(record: Record) -> str:
    dtype = record.dtype
    return f"{dtype if isinstance(dtype, str) and len(dtype) < 20 else shown(dtype)} {shown(record.shape)}"


def _differences(checkpoint: Checkpoint, manifest: Manifest, entries: Sequence[TensorEntry], threads: int) -> list[str]:
    """Those whose bytes do not have the digest of the manifest."""
    pool = _core.Pool(threads, os.environ.get("WARPMERGE_ISA", ""))
    items = []
    for entry in entries:
        view = _core.View(0, file=checkpoint.entries[entry.name][0].file, offset=entry.offset)
        items.append((entry.name, pool.copy(view, entry.nbytes, TILE_BYTES, _core.Output(0))))
    with _core.Guard(pool.settle):
        launch = pool.submit([item for _, item in items])
        while not launch.wait(100):
            pass
    return [
        f"tensor '{name}' does not have the digest of the manifest"
        for name, item in items
        if f"{item.digest:016x}" != manifest.tensors[name].digest
    ]
