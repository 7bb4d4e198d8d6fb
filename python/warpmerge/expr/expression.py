"""Expressions: a value for each element, written in Python as arithmetic and carried out by every backend.

    d = [delta(k) for k in range(3)]
    median = maximum(minimum(d[0], d[1]), minimum(maximum(d[0], d[1]), d[2]))
    return Map(Formula((median,)), on_deltas=True)

An expression has a value for each element of a tensor, in the compute type: float32, or float64 if an input is
float64. Each operation is rounded once, so an expression has the same bits everywhere. A comparison is 1 or 0. `where`
takes its second argument where the first is not 0, else the third.

There are two kinds of numbers. A Python float fills a slot: its value may change from tensor to tensor, and one
compiled program serves all values. A Python int is a literal: a part of the program, like the operations. Masks, random
keys and vectors fill slots too. Two expressions share a slot, and results computed from it, only if they share the
Python object: make `scale = value(0.5)` once and use it twice.
"""

from __future__ import annotations

import functools
import operator
import struct
from collections.abc import Sequence
from typing import Any

from ..errors import MergeError
from .masks import Mask, RankMask
from .operations import Op

__all__ = ["Expr", "Op"]

# Leaves that are no operations. Their numbers are below those of operations.
DELTA, BASE, LITERAL, SLOT = -1, -2, -3, -4
MOST_BITS = 65535  # the largest draw


# Looked up once: a member of an enumeration costs as much to find as an expression to make.
_ADD, _SUB, _MUL, _DIV, _NEG = Op.ADD, Op.SUB, Op.MUL, Op.DIV, Op.NEG
_ABS, _LT, _LE, _EQ, _WHERE = Op.ABS, Op.LT, Op.LE, Op.EQ, Op.WHERE
_MIN, _MAX, _KEEP = Op.MIN, Op.MAX, Op.KEEP


class Expr:
    """A value for each element. The functions of this module make expressions, and arithmetic combines them.

    Operators: `+ - * /`, `-a`, `abs(a)`, `< <= > >=`, with expressions or numbers on either side. A comparison is 1 or
    0. `equal(a, b)` compares values; `a == b` compares Python objects.

    Attributes:
        op: an `Op`, or one of DELTA, BASE, LITERAL and SLOT.
        args: the operands.
        payload: the model of a DELTA, the bits of a LITERAL's float64, the number of a SLOT, or the mask, key or vector
            of an operation that has one.
    """

    __slots__ = ("args", "op", "payload")

    def __init__(self, op: int, args: tuple[Expr, ...] = (), payload: Any = None) -> None:
        self.op, self.args, self.payload = op, args, payload

    def __repr__(self) -> str:
        name = (
            self.op.name if isinstance(self.op, Op) else {-1: "DELTA", -2: "BASE", -3: "LITERAL", -4: "SLOT"}[self.op]
        )
        return f"Expr({name}, {len(self.args)} operands, {self.payload!r})"

    def __add__(self, other: Expr | float) -> Expr:
        return Expr(_ADD, (self, wrap(other)))

    def __radd__(self, other: float) -> Expr:
        return Expr(_ADD, (wrap(other), self))

    def __sub__(self, other: Expr | float) -> Expr:
        return Expr(_SUB, (self, wrap(other)))

    def __rsub__(self, other: float) -> Expr:
        return Expr(_SUB, (wrap(other), self))

    def __mul__(self, other: Expr | float) -> Expr:
        return Expr(_MUL, (self, wrap(other)))

    def __rmul__(self, other: float) -> Expr:
        return Expr(_MUL, (wrap(other), self))

    def __truediv__(self, other: Expr | float) -> Expr:
        return Expr(_DIV, (self, wrap(other)))

    def __rtruediv__(self, other: float) -> Expr:
        return Expr(_DIV, (wrap(other), self))

    def __neg__(self) -> Expr:
        return Expr(_NEG, (self,))

    def __abs__(self) -> Expr:
        return Expr(_ABS, (self,))

    def __lt__(self, other: Expr | float) -> Expr:
        return Expr(_LT, (self, wrap(other)))

    def __le__(self, other: Expr | float) -> Expr:
        return Expr(_LE, (self, wrap(other)))

    def __gt__(self, other: Expr | float) -> Expr:
        return Expr(_LT, (wrap(other), self))

    def __ge__(self, other: Expr | float) -> Expr:
        return Expr(_LE, (wrap(other), self))

    def __bool__(self) -> bool:
        raise MergeError(
            "an expression has a value for each element, so an if cannot test it: use where(condition, a, b)."
        )


def literal(number: float) -> Expr:
    """A number that is a part of the program. Another number makes another program, to be compiled anew."""
    return Expr(LITERAL, (), struct.unpack("<q", struct.pack("<d", number))[0])


def number_of(literal: Expr) -> float:
    """The number of a literal."""
    return struct.unpack("<d", struct.pack("<q", literal.payload))[0]


def value(number: float) -> Expr:
    """A number in a slot: it may change from tensor to tensor without a new compilation.

    A float in arithmetic fills a slot by itself. Use `value` for a number that several expressions share.
    """
    return Expr(SLOT, (), float(number))


_SMALL = {number: literal(number) for number in range(-1, 17)}


def wrap(number: Expr | float) -> Expr:
    """A number as an expression: an int becomes a literal, any other number fills a slot."""
    if isinstance(number, Expr):
        return number
    if isinstance(number, int):
        small = _SMALL.get(number)
        return literal(number) if small is None else small
    return Expr(SLOT, (), float(number))


def delta(k: int) -> Expr:
    """The element of input `k` minus the base's element; with `on_deltas=False`, the element of input `k` itself.

    Args:
        k: index of an input, from 0. Auxiliary tensors follow the models.
    """
    return Expr(DELTA, (), k)


def base() -> Expr:
    """The element of the base; 0 without a base."""
    return Expr(BASE)


def equal(a: Expr, b: Expr | float) -> Expr:
    """1 where a equals b, else 0; 0 where one is NaN."""
    return Expr(_EQ, (a, wrap(b)))


def where(condition: Expr, a: Expr | float, b: Expr | float) -> Expr:
    """`a` where the condition is not 0, else `b`. Make the rare value `b`: a CPU skips it where nothing needs it."""
    return Expr(_WHERE, (condition, wrap(a), wrap(b)))


def minimum(a: Expr, b: Expr | float) -> Expr:
    """`a` where a < b, else `b`. So it is `b` where both are equal or one is NaN."""
    return Expr(_MIN, (a, wrap(b)))


def maximum(a: Expr, b: Expr | float) -> Expr:
    """`a` where a > b, else `b`. So it is `b` where both are equal or one is NaN."""
    return Expr(_MAX, (a, wrap(b)))


def sqrt(a: Expr) -> Expr:
    """The square root, correctly rounded."""
    return Expr(Op.SQRT, (a,))


def masked(a: Expr, mask: Mask) -> Expr:
    """`a` where the mask keeps it, else 0.

    Args:
        a: the expression. A TopKMask compares the magnitude of its value.
        mask: a TopKMask, a RandomMask or a RankMask. A RankMask needs a `delta(k)`: only inputs have ranks.

    Raises:
        MergeError: `mask` is no mask, or a RankMask for another expression than a delta.
    """
    if not isinstance(mask, Mask):
        raise MergeError(f"a mask must be a TopKMask, a RandomMask or a RankMask, not {mask!r}.")
    if isinstance(mask, RankMask):
        return where(draw(mask.key) < rank_cut(a, mask), a, 0)
    return Expr(_KEEP, (a,), mask)


def rank_cut(a: Expr, mask: RankMask) -> Expr:
    """The cut of a RankMask for each element: low + step * rank, rounded to a whole number from 1 to MOST_BITS."""
    if a.op != DELTA:
        raise MergeError(
            "a RankMask is for deltas, because only a delta has a rank in its row; mask the deltas instead."
        )
    share = value(mask.low) + rank(a.payload, mask.columns) * float(mask.step)
    return minimum(maximum(nearest(share), 1), MOST_BITS)


def draw(key: int) -> Expr:
    """16 random bits for each element: a whole number from 0 to 65535.

    Args:
        key: a key of `stream_key`. The same key gives the same numbers.
    """
    return Expr(Op.DRAW, (), key)


def row(values: Any) -> Expr:
    """The entry of a vector for the element's row. `Formula` then needs `columns`.

    Args:
        values: (rows,) float64 array.
    """
    return Expr(Op.ROW, (), values)


def column(values: Any) -> Expr:
    """The entry of a vector for the element's column. `Formula` then needs `columns`.

    Args:
        values: (columns,) float64 array.
    """
    return Expr(Op.COLUMN, (), values)


def rank(k: int, columns: int = 0) -> Expr:
    """The rank of the element's |delta(k)| in its row, from 0 (smallest) to columns - 1.

    Of equal magnitudes the first has the lower rank.

    Args:
        k: index of an input.
        columns: length of a row; 0: that of the formula.
    """
    return Expr(Op.RANK, (delta(k),), columns)


def nearest(a: Expr) -> Expr:
    """The nearest whole number, halves to even, for |a| < 2^22."""
    return Expr(Op.NEAREST, (a,))


def exp(a: Expr) -> Expr:
    """The exponential function, within 1.5 ulp. An argument beyond the range of the type counts as its end,
    and NaN as the lower end: `Map` sees to it that NaN comes out where that is asked for."""
    return Expr(Op.EXP, (a,))


def expm1(a: Expr) -> Expr:
    """exp(a) - 1, within 4 ulp, also near 0."""
    return Expr(Op.EXPM1, (a,))


def expm1_near(a: Expr) -> Expr:
    """exp(a) - 1 for |a| < 0.35."""
    return Expr(Op.EXPM1_NEAR, (a,))


def log(a: Expr) -> Expr:
    """The natural logarithm of a normal number above 0, within 4 ulp."""
    return Expr(Op.LOG, (a,))


def log1p(a: Expr) -> Expr:
    """log(1 + a) for a > -1, within 5 ulp, also near 0."""
    return Expr(Op.LOG1P, (a,))


def tanh(a: Expr) -> Expr:
    """The hyperbolic tangent, within 4 ulp."""
    return Expr(Op.TANH, (a,))


def divergence_near(a: Expr) -> Expr:
    """(1 + a) artanh(a) - a for |a| < 0.15. With p + q = 1 and p - q = a, that is p log(p / q) - p + q."""
    return Expr(Op.DIVERGENCE_NEAR, (a,))


def add_up(terms: Sequence[Expr]) -> Expr:
    """The sum of at least one term, added from the first to the last."""
    return functools.reduce(operator.add, terms)
