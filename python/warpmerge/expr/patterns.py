"""Formulas that are asked for so often that a backend may know a faster way for them.

A pattern is its expressions. A kernel for it is an accelerator: it has the same bits, and a backend without such a
kernel evaluates the expressions.
"""

from __future__ import annotations

from collections.abc import Sequence

from .expression import Expr, delta, masked
from .formula import Formula
from .masks import Mask


class KeptMagnitudes(Formula):
    """2 K values: |delta(0)|, |what keep[0] leaves of it|, then those of the other deltas."""

    __slots__ = ("keep",)

    def __init__(self, keep: Sequence[Mask]) -> None:
        self.keep = tuple(keep)
        values: list[Expr] = []
        for k, mask in enumerate(self.keep):
            values += [abs(delta(k)), abs(masked(delta(k), mask))]
        super().__init__(values)

    def starting(self, first: int) -> KeptMagnitudes:
        """The pattern for a tensor whose first element is element `first` for the masks."""
        return KeptMagnitudes(tuple(mask.offset_by(first) for mask in self.keep))
