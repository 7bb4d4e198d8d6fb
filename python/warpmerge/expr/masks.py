"""Masks: rules that keep some elements of a delta and set the others to 0.

A mask is a small record, not an array: each backend evaluates it while it reads the elements. A top-k mask compares
magnitude keys with a threshold. A random mask compares a draw with one cut for all elements. A rank mask compares a
draw with a cut that rises with the element's rank in its row. Masks depend on values, names and positions only, so they
are the same for every tile size, thread count and device.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import MergeError

NO_TIE_END = 2**63 - 1


@dataclass(frozen=True, slots=True)
class TopKMask:
    """Keeps the elements of largest magnitude: keys above the threshold, and the first ties.

    A magnitude key is the bit pattern of |d| in the compute type, read as an unsigned integer.

    Attributes:
        threshold: elements with a larger key are kept.
        tie_end: elements with this key are kept if their flat index is below `tie_end`.
    """

    threshold: int
    tie_end: int = NO_TIE_END

    def offset_by(self, first: int) -> TopKMask:
        """The mask for the part of the tensor that begins at flat index `first`."""
        if first == 0 or self.tie_end == NO_TIE_END:
            return self
        return TopKMask(self.threshold, max(0, self.tie_end - first))


@dataclass(frozen=True, slots=True)
class RandomMask:
    """Keeps each element with the probability cut / 65536.

    Attributes:
        key: key of the random numbers, from `stream_key`.
        cut: an element is kept if its draw is below it; from 1 to 65535.
    """

    key: int
    cut: int

    def offset_by(self, first: int) -> RandomMask:
        """The same mask: draws are those of the whole tensor."""
        return self


@dataclass(frozen=True, slots=True)
class RankMask:
    """Keeps each element with a probability that rises with its rank in its row. For deltas only.

    An element is kept if its draw is below low + step * rank, computed in the compute type, rounded to the nearest
    whole number (halves to even), from 1 to 65535.

    Attributes:
        key: key of the random numbers, from `stream_key`.
        low: cut of the smallest element of a row, in 65536ths.
        step: difference of the cuts of neighbouring ranks, at least 0.
        columns: length of a row.

    Raises:
        MergeError: `step` is negative, or `columns` is below 1.
    """

    key: int
    low: float
    step: float
    columns: int

    def __post_init__(self) -> None:
        if self.step < 0 or self.columns < 1:
            raise MergeError("a RankMask needs a step of at least 0, and columns, the length of a row.")

    def offset_by(self, first: int) -> RankMask:
        """The same mask: draws and rows are those of the whole tensor."""
        return self


Mask = TopKMask | RandomMask | RankMask
KEEP_ALL = TopKMask(0)
KEEP_NONE = TopKMask(2**63)
