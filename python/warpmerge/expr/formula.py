"""Formulas: what a request is about, one or several expressions that are computed together."""

from __future__ import annotations

from collections.abc import Sequence

from .expression import Expr
from .program import Program, program_of


class Formula:
    """One or several expressions over the same inputs.

    values: the expressions. columns: length of a row, for expressions that know rows or columns, unless a
    `rank` knows it. first: the masks count
    elements from here before the tensor's first one.
    """

    __slots__ = ("_programs", "columns", "first", "values")

    def __init__(self, values: Sequence[Expr], columns: int = 0, first: int = 0) -> None:
        self.values, self.columns, self.first = tuple(values), columns, first
        self._programs: dict[tuple[int, bool, bool], Program] = {}

    def __repr__(self) -> str:
        return f"Formula({len(self.values)} values, columns={self.columns}, first={self.first})"

    def starting(self, first: int) -> Formula:
        """The formula for a tensor whose first element is element `first` for the masks."""
        return Formula(self.values, self.columns, first)

    def program(self, inputs: int, fp64: bool, functions: bool = False) -> Program:
        """For this many inputs (the base not counted), in float64 if `fp64`.

        functions: the backend has instructions for them; else they are expanded.

        Raises MergeError if it is too long or names an input that is not there.
        """
        key = inputs, fp64, functions
        found = self._programs.get(key)
        if found is None:
            found = self._programs[key] = program_of(self.values, self.columns, self.first, *key)
        return found
