"""Which elements of a delta survive: by magnitude, by a draw, or by a draw that favours the larger ones of a row."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import MergeError

NO_TIE_END = 2**63 - 1


@dataclass(frozen=True, slots=True)
class TopKMask:
    """Keep elements whose magnitude key is above `threshold`, or equal to it at a flat index below `tie_end`.

    A magnitude key is the bit pattern of |d| in the compute type, read as an unsigned integer.
    """

    threshold: int
    tie_end: int = NO_TIE_END

    def offset_by(self, first: int) -> TopKMask:
        """The rule for what begins at flat index `first`."""
        if first == 0 or self.tie_end == NO_TIE_END:
            return self
        return TopKMask(self.threshold, max(0, self.tie_end - first))


@dataclass(frozen=True, slots=True)
class RandomMask:
    """Keep an element iff its 16 Philox bits under `key` (64 bits) are below `cut` (0 < cut < 65536)."""

    key: int
    cut: int

    def offset_by(self, first: int) -> RandomMask:
        """The same: draws are those of the tensor, wherever it begins."""
        return self


@dataclass(frozen=True, slots=True)
class RankMask:
    """Keep an element iff its 16 Philox bits under `key` are below a cut that rises with its rank in its row.

    cut = low + step * rank in the compute type, rounded to the nearest whole number (of two the even one), from 1 to
    65535. Rows have `columns` elements; `rank` is that of `formula.rank`. It is for deltas as they are, not for values
    of formulas.
    """

    key: int
    low: float
    step: float
    columns: int

    def __post_init__(self) -> None:
        if self.step < 0 or self.columns < 1:
            raise MergeError("a RankMask needs a step of at least 0, and columns, the length of a row.")

    def offset_by(self, first: int) -> RankMask:
        """The same: draws and rows are those of the tensor, wherever it begins."""
        return self


Mask = TopKMask | RandomMask | RankMask
KEEP_ALL = TopKMask(0)
KEEP_NONE = TopKMask(2**63)
