"""Which tensors of two checkpoints differ, and by how much."""

from __future__ import annotations

import math
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .. import system
from ..engine.file_merge import Progress
from ..models import Checkpoint, TensorEntry, TensorFiles, allow_open_files
from .comparison import Compared, compare


@dataclass(frozen=True)
class TensorDiff:
    """A tensor that differs between two checkpoints A and B.

    Attributes:
        name: of the tensor.
        dtypes: of A's and of B's.
        shape: of both.
        count: number of elements.
        differing: number of elements that differ in their bits; in their values if the dtypes differ.
        not_finite: how many of them are NaN or infinite in A or in B. The measures leave them out.
        largest: the largest absolute difference of two elements; None for integers and 8-bit floats.
        relative: |a - b| / |b|, Euclidean norms over the tensor; None where it is not defined.
        cosine: of the angle between a and b; None where it is not defined.
    """

    name: str
    dtypes: tuple[str, str]
    shape: tuple[int, ...]
    count: int
    differing: int
    not_finite: int = 0
    largest: float | None = None
    relative: float | None = None
    cosine: float | None = None


@dataclass(frozen=True)
class Unlike:
    """A tensor that cannot be compared: A and B have it in another shape, or in dtypes of which one is no float.

    Attributes:
        name: of the tensor.
        dtypes: of A's and of B's.
        shapes: of A's and of B's.
    """

    name: str
    dtypes: tuple[str, str]
    shapes: tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class DiffReport:
    """Result of `diff`.

    Attributes:
        a: the first checkpoint.
        b: the second one.
        tensors: number of names that are in A or in B.
        nbytes: bytes of the tensors of A.
        only_a: names of tensors that only A has.
        only_b: names of tensors that only B has.
        unlike: an Unlike for each tensor of another shape or an incomparable dtype.
        differing: a TensorDiff for each other tensor that differs, those that differ most first: without a relative
            norm or with elements that are not finite, then by that norm.
        differing_bytes: bytes of A in `only_a`, `unlike` and `differing`.
    """

    a: str
    b: str
    tensors: int
    nbytes: int
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    unlike: tuple[Unlike, ...]
    differing: tuple[TensorDiff, ...]
    differing_bytes: int

    @property
    def count(self) -> int:
        """Number of tensors that are not the same in A and B."""
        return len(self.only_a) + len(self.only_b) + len(self.unlike) + len(self.differing)

    @property
    def equal(self) -> bool:
        """Whether A and B have the same tensors with the same bits."""
        return not self.count

    def as_dict(self) -> dict[str, Any]:
        """The attributes as a dictionary that JSON can hold."""
        return {**asdict(self), "equal": self.equal}


def diff(a: str | Path, b: str | Path, *, threads: int | None = None, progress: Progress | None = None) -> DiffReport:
    """Compares the tensors of two checkpoints: names, shapes, dtypes, bits, and how far the values are apart.

    Weights are read in pieces: no tensor is held whole. Only tensors are compared, not configs or tokenizers.

    Args:
        a: a model directory, a Hugging Face id, or a `.safetensors` file.
        b: the same.
        threads: number of worker threads. Default: the cores that this process may use.
        progress: called with (bytes compared, bytes to compare).

    Returns:
        A DiffReport. Differences are not errors.

    Raises:
        UsageError: there is no such model.
        CheckpointError: files are missing or damaged, or change while they are read.

    Example:
        >>> report = wm.diff("merged/", "base/")
        >>> report.equal, [(t.name, t.relative) for t in report.differing[:3]]
    """
    with ExitStack() as stack:
        first, second = (stack.enter_context(closing(_opened(path))) for path in (a, b))
        allow_open_files(len(first.shards) + len(second.shards))
        mine, others = first.entries, second.entries
        both = [name for name in first.names if name in others]
        names = [name for name in both if _comparable(mine[name][1], others[name][1])]
        known = set(names)
        unlike = [_unlike(mine[name][1], others[name][1]) for name in both if name not in known]
        compared = compare(first, second, names, threads, progress)
        found = [_measured(c, mine[c.name][1], others[c.name][1]) for c in compared]
        for files in (first, second):
            files.check()  # what was written to while it was read is neither the old nor the new checkpoint
        found.sort(key=_distance, reverse=True)
        only_a = [name for name in first.names if name not in others]
        concerned = [*only_a, *(u.name for u in unlike), *(d.name for d in found)]
        return DiffReport(
            str(a),
            str(b),
            len(mine.keys() | others.keys()),
            sum(first.columns.sizes),
            tuple(only_a),
            tuple(name for name in second.names if name not in mine),
            tuple(unlike),
            tuple(found),
            sum(mine[name][1].nbytes for name in concerned),
        )


def _opened(path: str | Path) -> TensorFiles:
    if Path(path).suffix == ".safetensors" and not system.is_directory(path):
        return TensorFiles(Path(path), [Path(path)])
    return Checkpoint(str(path))


def _comparable(a: TensorEntry, b: TensorEntry) -> bool:
    return a.shape == b.shape and (a.dtype == b.dtype or (a.dtype.is_float and b.dtype.is_float))


def _unlike(a: TensorEntry, b: TensorEntry) -> Unlike:
    return Unlike(a.name, (a.dtype.name, b.dtype.name), (a.shape, b.shape))


def _measured(compared: Compared, a: TensorEntry, b: TensorEntry) -> TensorDiff:
    dtypes = a.dtype.name, b.dtype.name
    if compared.measures is None:
        return TensorDiff(a.name, dtypes, a.shape, a.count, compared.differing)
    largest, apart, own, other, product, not_finite = compared.measures
    return TensorDiff(
        a.name,
        dtypes,
        a.shape,
        a.count,
        compared.differing,
        int(not_finite),
        largest,
        _ratio(math.sqrt(apart), math.sqrt(other)),
        _ratio(product, math.sqrt(own) * math.sqrt(other)),
    )


def _ratio(a: float, b: float) -> float | None:
    return a / b if b and math.isfinite(a) and math.isfinite(b) else None


def _distance(found: TensorDiff) -> tuple[float, float]:
    relative = math.inf if found.relative is None or found.not_finite else found.relative
    return relative, found.differing / max(1, found.count)
