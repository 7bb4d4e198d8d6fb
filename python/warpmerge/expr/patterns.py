"""Patterns: formulas that are used so often that a backend may have a kernel for them.

A pattern is a formula, so every backend can evaluate its expressions. Its class tells a backend what the expressions
are, without a search. A kernel for a pattern is an accelerator: it has the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence

from .expression import Expr, delta, masked
from .formula import Formula
from .masks import Mask


class KeptMagnitudes(Formula):
    """2 K values: |delta(0)|, |delta(0) masked by keep[0]|, then the same of the other deltas."""

    __slots__ = ("keep",)

    def __init__(self, keep: Sequence[Mask]) -> None:
        self.keep = tuple(keep)
        values: list[Expr] = []
        for k, mask in enumerate(self.keep):
            values += [abs(delta(k)), abs(masked(delta(k), mask))]
        super().__init__(values)

    def starting(self, first: int) -> KeptMagnitudes:
        """The pattern for the part of a tensor that begins at flat index `first`."""
        return KeptMagnitudes(tuple(mask.offset_by(first) for mask in self.keep))
