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
from .models.views import View

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

    __slots__ = ("_digests", "_done", "_firsts", "_samples", "_twins", "_waiting", "rows")

    def __init__(self, digests: dict[int, bytes]) -> None:
        self.rows: list[int] = []
        self._done = 0
        self._waiting: dict[int, int] = {}  # samples of rows that have not been looked at
        self._samples: dict[int, int] = {}  # of a sample: the first row that has it
        self._digests = digests
        self._firsts: dict[bytes, int] = {}  # of a digest: the first row that has it
        self._twins: dict[int, int] = {}  # of each twin but the first: the first

    def first(self, row: int, columns: Sequence[ViewColumn]) -> int:
        if len(self.rows) == 1:
            return row
        # A merge that is resumed asks for later rows only.
        while self._done < len(self.rows) and self.rows[self._done] <= row:
            self._look_at(self.rows[self._done], columns)
            self._done += 1
        return self._twins.get(row, row)

    def _look_at(self, row: int, columns: Sequence[ViewColumn]) -> None:
        like = self._samples.setdefault(self._sample(row, columns[0]), row)
        if like == row:
            return
        self._firsts.setdefault(self._digest(like, columns), like)
        first = self._firsts.setdefault(self._digest(row, columns), row)
        if first != row:
            self._twins[row] = first

    def _sample(self, row: int, column: ViewColumn) -> int:
        if row not in self._waiting:
            view = column.view(row)
            first, end = _middle(view)
            if view.device is None:
                return hash(bytes(view.read(first, end - first)))
            left = self.rows[self._done :]  # all at once: the host waits for the device once
            parts = [column.view(other).tensor().reshape(-1)[first:end] for other in left]
            self._waiting = dict(zip(left, _hashes(parts), strict=True))
        return self._waiting.pop(row)

    def _digest(self, row: int, columns: Sequence[ViewColumn]) -> bytes:
        if row not in self._digests:
            digest = hashlib.blake2b(digest_size=16)
            for column in columns:
                for part in column.view(row).chunks(READ):
                    digest.update(part)
            self._digests[row] = digest.digest()
        return self._digests[row]


def _middle(view: View) -> tuple[int, int]:
    first = max(0, (view.count - SAMPLE) // 2)
    return first, min(first + SAMPLE, view.count)


def _hashes(parts: Sequence[Any]) -> list[int]:
    """Of torch tensors alike on a device."""
    import torch

    return [hash(row.tobytes()) for row in torch.stack(list(parts)).view(torch.uint8).cpu().numpy()]
