"""Twins: tensors under two names that hold the same bytes in every input, such as a head that is stored a second time.

They must come out equal. A method that draws by name would give each of them numbers of its own; so twins draw by the
name of the first of them. Weights are read for it when the merge asks for a draw, and in the order in which tensors
are merged: a few bytes of each tensor that has others of its group and shape before or behind it, and all bytes of
those whose few bytes are equal.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from .models.view_columns import ViewColumn

Shape = tuple[int, ...]
SAMPLE = 32  # elements from the middle of the first input
READ = 4 << 20  # bytes that are read at once


class Twins:
    """Of tensors in columns.

    Args:
        shapes: of each row.
        group_of: of each row the number of its group; twins are in one group, so their parameters are the same.
        digests: of rows of which all bytes have been read, for another merge of the same models.
    """

    def __init__(
        self, shapes: Sequence[Shape], group_of: Sequence[int], digests: dict[int, bytes] | None = None
    ) -> None:
        self._shapes, self._group_of = shapes, group_of
        self._digests: dict[int, bytes] = {} if digests is None else digests
        self._alike: dict[tuple[int, Shape], _Alike] = {}

    def first(self, row: int, columns: Sequence[ViewColumn]) -> int:
        """The first row that has the same bytes as this one in all these columns, those of its group. Raises OSError
        (EFAULT) if they cannot be read."""
        if not self._alike:
            for number, key in enumerate(zip(self._group_of, self._shapes, strict=True)):
                known = self._alike.get(key)
                if known is None:
                    known = self._alike[key] = _Alike(self._digests)
                known.rows.append(number)
        return self._alike[self._group_of[row], self._shapes[row]].first(row, columns)


class _Alike:
    """The rows of one group and shape. Those before `_done` have been looked at."""

    __slots__ = ("_digests", "_done", "_firsts", "_nbytes", "_samples", "_start", "_taken", "_twins", "rows")

    def __init__(self, digests: dict[int, bytes]) -> None:
        self.rows: list[int] = []
        self._done = 0
        self._start = self._nbytes = 0  # of a sample
        self._taken: dict[int, int] | None = None  # samples of all rows, if they were taken at once
        self._samples: dict[int, int] = {}  # of a sample: the first row that has it
        self._digests = digests
        self._firsts: dict[bytes, int] = {}  # of a digest: the first row that has it
        self._twins: dict[int, int] = {}  # of each twin but the first: the first

    def first(self, row: int, columns: Sequence[ViewColumn]) -> int:
        rows, done = self.rows, self._done
        if len(rows) == 1:
            return row
        if not done:
            self._prepare(columns[0])
        # A merge that is resumed asks for later rows only.
        while done < len(rows) and rows[done] <= row:
            number = rows[done]
            if self._taken is None:
                sample = hash(bytes(columns[0].read(number, self._start, self._nbytes)))
            else:
                sample = self._taken[number]
            like = self._samples.setdefault(sample, number)
            if like != number:
                self._compare(number, like, columns)
            done = self._done = done + 1
        return self._twins.get(row, row)

    def _prepare(self, column: ViewColumn) -> None:
        """Chooses what is a sample. On a device all are taken at once, so that the host waits once."""
        view = column.view(self.rows[0])
        count = min(SAMPLE, view.count)
        first = (view.count - count) // 2
        self._start, self._nbytes = first * view.dtype.itemsize, count * view.dtype.itemsize
        if view.device is not None:
            tensors = [column.view(row).tensor().reshape(-1)[first : first + count] for row in self.rows]
            self._taken = dict(zip(self.rows, _hashes(tensors), strict=True))

    def _compare(self, row: int, like: int, columns: Sequence[ViewColumn]) -> None:
        """By digests, so that the bytes of no row are read twice, however many rows have the same sample."""
        self._firsts.setdefault(self._digest(like, columns), like)
        first = self._firsts.setdefault(self._digest(row, columns), row)
        if first != row:
            self._twins[row] = first

    def _digest(self, row: int, columns: Sequence[ViewColumn]) -> bytes:
        if row not in self._digests:
            digest = hashlib.blake2b(digest_size=16)
            for column in columns:
                for part in column.view(row).chunks(READ):
                    digest.update(part)
            self._digests[row] = digest.digest()
        return self._digests[row]


def _hashes(tensors: Sequence[Any]) -> list[int]:
    """Of the bytes of torch tensors alike."""
    import torch

    return [hash(row.tobytes()) for row in torch.stack(list(tensors)).view(torch.uint8).cpu().numpy()]
