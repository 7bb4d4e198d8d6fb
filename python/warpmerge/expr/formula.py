"""Formulas: one or several expressions over the same inputs, as requests hold them.

Backends compute the expressions of a formula together: each input is loaded once, and common parts are computed once. A
formula keeps the programs that were made of it.
"""

from __future__ import annotations

from collections.abc import Sequence

from .expression import Expr
from .program import Program, program_of


class Formula:
    """One or several expressions over the same inputs.

    Attributes:
        values: the expressions.
        columns: length of a row, for expressions with `row`, `column` or `rank`; 0: there are none.
        first: flat index of the tensor's first element, for masks of a part of a tensor.
    """

    __slots__ = ("_programs", "columns", "first", "values")

    def __init__(self, values: Sequence[Expr], columns: int = 0, first: int = 0) -> None:
        self.values, self.columns, self.first = tuple(values), columns, first
        self._programs: dict[tuple[int, bool, bool], Program] = {}

    def __repr__(self) -> str:
        return f"Formula({len(self.values)} values, columns={self.columns}, first={self.first})"

    def starting(self, first: int) -> Formula:
        """The formula for the part of a tensor that begins at flat index `first`."""
        return Formula(self.values, self.columns, first)

    def program(self, inputs: int, fp64: bool, functions: bool = False) -> Program:
        """The program of the expressions.

        Args:
            inputs: number of inputs, without the base.
            fp64: whether the compute type is float64.
            functions: whether the backend has instructions for `exp` and the like; else they are expanded.

        Raises:
            MergeError: the program is too long, or names an input that does not exist.
        """
        key = inputs, fp64, functions
        found = self._programs.get(key)
        if found is None:
            found = self._programs[key] = program_of(self.values, self.columns, self.first, *key)
        return found
