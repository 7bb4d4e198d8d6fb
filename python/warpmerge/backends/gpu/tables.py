"""Launch tables: what a kernel needs to know of the tensors of one launch, packed for the device.

A launch covers segments: element ranges of tensors that agree in their `Kind`. Its grid has one program per chunk of
CHUNK elements; chunks never cross tensors, so tensors of any size share a launch. What adds up columns has one per
COLUMN_TILE columns of a block of rows instead. The sections, all 16-byte aligned:

    segment_rows  int64 [S, 7 + K + M]  count, first, first chunk, tensor, first block, total, base, inputs, outputs
    chunk_map     int32 [C]             the segment of each chunk
    numbers       float64 [S, N]        coefficients: M x K of a weighted sum; value, vote, divisor (K each), lambda of
                                        an elect_and_sum; constants of a formula
    rules         int64 [S, K, 4]       cut (-1: threshold rule), threshold, tie end, Philox key; [S, rules, 4] of a
                                        formula
    words         int64 [S, W]          of a formula: length of a row, scratch for ranking, stream keys, addresses of
                                        vectors, addresses of the segment's ranks; of rows: their length; of products:
                                        that, and the rows that are added one after the other per column

`first` is the flat index of the segment's first element in its tensor of `total` elements. `tensor` is the row of its
tensor in result arrays, `first block` the row of its first reduction block in arrays of block partials. Addresses point
at element `first`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ...requests import NO_TIE_END, Mask, RandomMask, TopKMask

CHUNK = 16384
BLOCK = 4096  # of the reduction order; a chunk holds whole ones
COLUMN_TILE = 128
VECTOR = 16  # bytes of the widest access
PHILOX_LANES = 8  # elements that one call decides about
ALIGN = 256  # of every tensor in device memory that is laid out here


class Kind(NamedTuple):
    """What the segments of one launch have in common. `base` is -1 where there is none; dtypes are codes."""

    inputs: tuple[int, ...]
    base: int
    out: int
    outputs: int
    fp64: bool
    policy: int
    aligned: bool

    @property
    def models(self) -> int:
        return len(self.inputs)


class SegmentRow(NamedTuple):
    count: int  # type: ignore[assignment]
    first: int
    tensor: int
    block: int
    total: int
    base: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class KernelLaunch:
    """A packed table in device memory: its kind, its grid and the addresses of its sections (0: there is none).

    at_calls: what one call of Philox decides lies in one segment, so each begins with a call.
    """

    kind: Kind
    segments: int
    chunks: int
    at_calls: bool
    segment_rows: int
    chunk_map: int
    numbers: int
    rules: int
    words: int

    @property
    def models(self) -> int:
        return self.kind.models

    @property
    def inputs(self) -> tuple[int, ...]:
        return self.kind.inputs

    @property
    def base(self) -> int:
        return self.kind.base

    @property
    def out(self) -> int:
        return self.kind.out

    @property
    def outputs(self) -> int:
        return self.kind.outputs

    @property
    def fp64(self) -> bool:
        return self.kind.fp64

    @property
    def policy(self) -> int:
        return self.kind.policy

    @property
    def aligned(self) -> bool:
        return self.kind.aligned


def chunks_of(count: int) -> int:
    return -(-count // CHUNK)


def blocks_of(count: int) -> int:
    return -(-count // BLOCK)


def is_aligned(*addresses: int) -> bool:
    return all(address % VECTOR == 0 for address in addresses)


class Table:
    """The sections of one launch on the host, ready to be copied."""

    def __init__(
        self,
        kind: Kind,
        rows: Sequence[SegmentRow],
        numbers: np.ndarray | None = None,
        rules: np.ndarray | None = None,
        words: np.ndarray | None = None,
        programs: Sequence[int] | None = None,
    ) -> None:
        """`rows`: of the segments. `programs`: of each segment, if there is not one for each chunk."""
        self.kind = kind
        self.segments = len(rows)
        chunks = np.array([chunks_of(r.count) for r in rows] if programs is None else programs, np.int64)
        self.chunks = int(chunks.sum())
        segment_rows = np.array(
            [(r.count, r.first, 0, r.tensor, r.block, r.total, r.base, *r.inputs, *r.outputs) for r in rows], np.int64
        ).reshape(len(rows), 7 + kind.models + kind.outputs)
        segment_rows[:, 2] = np.cumsum(chunks) - chunks
        self._at_calls = not (segment_rows[:, 1] % PHILOX_LANES).any()
        chunk_map = np.repeat(np.arange(len(rows), dtype=np.int32), chunks)
        self._sections: list[np.ndarray | None] = [segment_rows, chunk_map, numbers, rules, words]

    @property
    def nbytes(self) -> int:
        return sum(_padded(s.nbytes) for s in self._sections if s is not None)

    def write(self, target: np.ndarray, address: int) -> KernelLaunch:
        """Puts the sections into (nbytes,) uint8 `target`, which will lie at `address` on the device."""
        at = 0
        found = []
        for section in self._sections:
            if section is None or section.nbytes == 0:
                found.append(0)
                continue
            target[at : at + section.nbytes] = section.reshape(-1).view(np.uint8)
            found.append(address + at)
            at += _padded(section.nbytes)
        return KernelLaunch(self.kind, self.segments, self.chunks, self._at_calls, *found)


def _padded(nbytes: int) -> int:
    return -(-nbytes // VECTOR) * VECTOR


def rule_rows(keep: Sequence[Mask]) -> list[tuple[int, int, int, int]]:
    """The `rules` section of one segment. Keys are unsigned 64-bit numbers stored in int64."""
    return [_rule_row(mask) for mask in keep]


def _rule_row(mask: Mask) -> tuple[int, int, int, int]:
    if isinstance(mask, RandomMask):
        return mask.cut, 0, 0, mask.key - 2**64 if mask.key >= 2**63 else mask.key
    assert isinstance(mask, TopKMask), "masks by rank are expanded before"
    return -1, min(mask.threshold, 2**63 - 1), min(mask.tie_end, NO_TIE_END), 0
