"""Formulas: what a method computes of each element by itself, written in Python and carried out by every backend.

    d = [delta(k) for k in range(3)]
    median = maximum(minimum(d[0], d[1]), minimum(maximum(d[0], d[1]), d[2]))
    return Map(Formula((median,)), on_deltas=True)

An expression is a value of the compute type (float32, or float64 where an input is) for each element of a tensor. Each
operation is rounded once, so a formula has the same bits everywhere. A comparison is 1 or 0; `where` takes its second
argument where the first is not 0. Backends get a `Program`: straight-line code over numbered operands.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..errors import MergeError
from .masks import Mask

if TYPE_CHECKING:
    from .program import Program


class Op(enum.IntEnum):
    """What an instruction makes of its operands a, b, c. The numbers are those of csrc/ops/formula.h."""

    ADD = 0
    SUB = 1
    MUL = 2
    DIV = 3
    SQRT = 4
    ABS = 5  # the sign bit cleared
    NEG = 6  # the sign bit flipped
    MIN = 7  # a if a < b else b
    MAX = 8  # a if a > b else b
    LT = 9  # 1 if a < b else 0
    LE = 10
    EQ = 11
    WHERE = 12  # b if a != 0 else c
    POW2 = 13  # 2^a for a whole a that leaves it a normal number
    EXPONENT = 14  # the unbiased exponent field of a: floor(log2 |a|) of a normal number
    KEEP = 15  # a where rule `payload` keeps it, else 0
    DRAW = 16  # 16 random bits, 0 to 65535, of the stream `payload`
    ROW = 17  # the element's row's entry of vector `payload`
    COLUMN = 18  # the element's column's entry of vector `payload`
    RANK = 19  # how many elements of the row have a smaller |a|, or an equal one and a lower column; a is an input
    # Functions: backends that have no instructions for them get what elementary.py makes of them.
    EXP = 20
    EXPM1 = 21
    EXPM1_NEAR = 22
    LOG = 23
    LOG1P = 24
    TANH = 25
    DIVERGENCE_NEAR = 26


class Leaf(enum.Enum):
    DELTA, BASE, CONSTANT = range(3)


@dataclass(frozen=True)
class Given:
    """A place for a number, rule, key or vector that is named when the formula is used."""

    index: int


@dataclass(frozen=True, eq=False)
class Expr:
    """A value for each element. Made by the functions below and by arithmetic on what they return."""

    op: Op | Leaf
    args: tuple[Expr, ...] = ()
    payload: Any = None

    def __add__(self, other: Expr | float) -> Expr:
        return Expr(Op.ADD, (self, wrap(other)))

    def __radd__(self, other: float) -> Expr:
        return Expr(Op.ADD, (wrap(other), self))

    def __sub__(self, other: Expr | float) -> Expr:
        return Expr(Op.SUB, (self, wrap(other)))

    def __rsub__(self, other: float) -> Expr:
        return Expr(Op.SUB, (wrap(other), self))

    def __mul__(self, other: Expr | float) -> Expr:
        return Expr(Op.MUL, (self, wrap(other)))

    def __rmul__(self, other: float) -> Expr:
        return Expr(Op.MUL, (wrap(other), self))

    def __truediv__(self, other: Expr | float) -> Expr:
        return Expr(Op.DIV, (self, wrap(other)))

    def __rtruediv__(self, other: float) -> Expr:
        return Expr(Op.DIV, (wrap(other), self))

    def __neg__(self) -> Expr:
        return Expr(Op.NEG, (self,))

    def __abs__(self) -> Expr:
        return Expr(Op.ABS, (self,))

    def __lt__(self, other: Expr | float) -> Expr:
        return Expr(Op.LT, (self, wrap(other)))

    def __le__(self, other: Expr | float) -> Expr:
        return Expr(Op.LE, (self, wrap(other)))

    def __gt__(self, other: Expr | float) -> Expr:
        return Expr(Op.LT, (wrap(other), self))

    def __ge__(self, other: Expr | float) -> Expr:
        return Expr(Op.LE, (wrap(other), self))

    def __bool__(self) -> bool:
        raise MergeError("an expression has a value for each element: use where(condition, a, b) instead of an if.")


def wrap(value: Expr | float) -> Expr:
    return value if isinstance(value, Expr) else Expr(Leaf.CONSTANT, payload=float(value))


def given(index: int) -> Expr:
    """A number that is named when the formula is used. `kept`, `draw`, `row` and `column` take a `Given` instead."""
    return Expr(Leaf.CONSTANT, payload=Given(index))


def delta(k: int) -> Expr:
    """Element of model `k` minus the base's; without a reference base, the element itself."""
    return Expr(Leaf.DELTA, payload=k)


def base() -> Expr:
    """Element of the base; 0 without one."""
    return Expr(Leaf.BASE)


def equal(a: Expr, b: Expr | float) -> Expr:
    return Expr(Op.EQ, (a, wrap(b)))


def where(condition: Expr, a: Expr | float, b: Expr | float) -> Expr:
    return Expr(Op.WHERE, (condition, wrap(a), wrap(b)))


def minimum(a: Expr, b: Expr | float) -> Expr:
    """The second one where they are equal or one is NaN."""
    return Expr(Op.MIN, (a, wrap(b)))


def maximum(a: Expr, b: Expr | float) -> Expr:
    """The second one where they are equal or one is NaN."""
    return Expr(Op.MAX, (a, wrap(b)))


def sqrt(a: Expr) -> Expr:
    return Expr(Op.SQRT, (a,))


def kept(a: Expr, rule: Mask | Given) -> Expr:
    """`a` where the rule keeps it, by its own magnitude and position, else 0."""
    return Expr(Op.KEEP, (a,), rule)


def draw(key: int | Given) -> Expr:
    """16 random bits for each element, a whole number from 0 to 65535. `key`: see random.stream_key."""
    return Expr(Op.DRAW, (), key)


def row(values: Any) -> Expr:
    """(rows,) float64: the entry of the element's row."""
    return Expr(Op.ROW, (), values)


def column(values: Any) -> Expr:
    """(columns,) float64: the entry of the element's column."""
    return Expr(Op.COLUMN, (), values)


def rank(k: int) -> Expr:
    """0 for the element of least |delta(k)| in its row, of equal ones the first, up to columns - 1."""
    return Expr(Op.RANK, (delta(k),))


def exp(a: Expr) -> Expr:
    """Within 2 ulp; arguments beyond the type's range count as its ends."""
    return Expr(Op.EXP, (a,))


def expm1(a: Expr) -> Expr:
    """exp(a) - 1, without cancellation near 0."""
    return Expr(Op.EXPM1, (a,))


def expm1_near(a: Expr) -> Expr:
    """exp(a) - 1 for |a| < 0.35."""
    return Expr(Op.EXPM1_NEAR, (a,))


def log(a: Expr) -> Expr:
    """Of a normal number above 0."""
    return Expr(Op.LOG, (a,))


def log1p(a: Expr) -> Expr:
    """log(1 + a) for a > -1, without cancellation near 0."""
    return Expr(Op.LOG1P, (a,))


def tanh(a: Expr) -> Expr:
    return Expr(Op.TANH, (a,))


def divergence_near(a: Expr) -> Expr:
    """(1 + a) artanh(a) - a for |a| < 0.15: p log(p / q) - p + q of p + q = 1 and p - q = a."""
    return Expr(Op.DIVERGENCE_NEAR, (a,))


def add_up(terms: Sequence[Expr]) -> Expr:
    """Their sum, the first two first."""
    return functools.reduce(lambda a, b: a + b, terms)


@dataclass(frozen=True, eq=False)
class Formula:
    """One or several expressions over the same inputs. `columns`: length of a row, for those that know rows.

    A formula whose numbers change from tensor to tensor is made once, with `given` places for them, and then used with
    different ones: that saves compiling it each time.
    """

    values: tuple[Expr, ...]
    columns: int = 0
    given: tuple[Any, ...] = ()
    first: int = 0  # rules count elements from here before the tensor's first one
    _programs: dict = field(default_factory=dict, repr=False)
    _templates: dict = field(default_factory=dict, repr=False)

    def using(self, *given: Any, columns: int = 0) -> Formula:
        """The formula with these numbers, rules, keys and vectors in the places `given(0)`, `given(1)`, ..."""
        return replace(self, given=given, columns=columns or self.columns, _programs={})

    def starting(self, first: int) -> Formula:
        """The formula for a tensor whose first element is element `first` for the rules."""
        return replace(self, first=first, _programs={})

    def program(self, inputs: int, fp64: bool, functions: bool = False) -> Program:
        """For this many inputs (the base not counted), in float64 if `fp64`. Raises MergeError if it is too long.

        functions: the backend has instructions for them; else they are spelled out.
        """
        from .program import compiled

        key = inputs, fp64, functions
        if key not in self._templates:
            self._templates[key] = compiled(self.values, *key)
        if key not in self._programs:
            template = self._templates[key]
            self._programs[key] = replace(
                template,
                constants=self._filled(template.constants),
                rules=tuple(rule.offset_by(self.first) for rule in self._filled(template.rules)),
                keys=self._filled(template.keys),
                vectors=self._filled(template.vectors),
                columns=self.columns,
            )
        return self._programs[key]

    def _filled(self, table: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(self.given[entry.index] if isinstance(entry, Given) else entry for entry in table)
