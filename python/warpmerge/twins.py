"""Twins: tensors under two names that hold the same bytes in every input, such as a head that is stored a second time.

They must come out equal. A method that draws by name would give each of them numbers of its own; so twins draw by the
name of the first of them. Weights are read for it when the merge asks for a draw, and in the order in which tensors
are merged: a few bytes of each tensor that has others of its group and shape before or behind it, and all bytes of
those whose few bytes are equal.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from .models.view_columns import ViewColumn

Shape = tuple[int, ...]
SAMPLE = 32  # elements from the middle of the first input
READ = 4 << 20  # bytes that are read at once


class Twins:
    """Of tensors in columns.

    Args:
        shapes: of each row.
        group_of: of each row the number of its group; twins are in one group, so their parameters are the same.
    """

    def __init__(self, shapes: Sequence[Shape], group_of: Sequence[int]) -> None:
        self._shapes, self._group_of = shapes, group_of
        self._alike: dict[tuple[int, Shape], _Alike] = {}

    def first(self, row: int, columns: Sequence[ViewColumn]) -> int:
        """The first row that has the same bytes as this one in all these columns, those of its group. Raises OSError
        (EFAULT) if they cannot be read."""
        if not self._alike:
            for number, key in enumerate(zip(self._group_of, self._shapes, strict=True)):
                known = self._alike.get(key)
                if known is None:
                    known = self._alike[key] = _Alike()
                known.rows.append(number)
        return self._alike[self._group_of[row], self._shapes[row]].first(row, columns)


class _Alike:
    """The rows of one group and shape. Those before `_done` have been looked at."""

    __slots__ = ("_digested", "_digests", "_done", "_firsts", "_samples", "rows")

    def __init__(self) -> None:
        self.rows: list[int] = []
        self._done = 0
        self._samples: dict[int, int] = {}  # of a few bytes: the first row that has them
        self._digests: dict[bytes, int] = {}  # of all bytes, for rows whose few bytes are not theirs alone
        self._digested: set[int] = set()
        self._firsts: dict[int, int] = {}  # of each twin but the first: the first

    def first(self, row: int, columns: Sequence[ViewColumn]) -> int:
        if len(self.rows) == 1:
            return row
        # A merge that is resumed asks for later rows only.
        while self._done < len(self.rows) and self.rows[self._done] <= row:
            self._look_at(self.rows[self._done], columns)
            self._done += 1
        return self._firsts.get(row, row)

    def _look_at(self, row: int, columns: Sequence[ViewColumn]) -> None:
        like = self._samples.setdefault(_sample(columns[0], row), row)
        if like == row:
            return
        if like not in self._digested:
            self._digested.add(like)
            self._digests.setdefault(_digest(columns, like), like)
        first = self._digests.setdefault(_digest(columns, row), row)
        if first != row:
            self._firsts[row] = first


def _sample(column: ViewColumn, row: int) -> int:
    view = column.view(row)
    count = min(SAMPLE, view.count)
    return hash(bytes(view.read((view.count - count) // 2, count)))


def _digest(columns: Sequence[ViewColumn], row: int) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for column in columns:
        for part in column.view(row).chunks(READ):
            digest.update(part)
    return digest.digest()
