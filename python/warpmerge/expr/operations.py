"""The operations of expressions: one table, from which every backend takes names, numbers and operand counts.

`python -m warpmerge.expr.operations > csrc/ops/operations.h` writes the C++ form of the table.
"""

from __future__ import annotations

import enum


class Op(enum.IntEnum):
    """An operation. Its value is its number in every backend.

    Attributes:
        arity: how many operands it has.
        meaning: what it makes of its operands a, b and c.
    """

    arity: int
    meaning: str

    def __new__(cls, number: int, arity: int, meaning: str) -> Op:
        made = int.__new__(cls, number)
        made._value_, made.arity, made.meaning = number, arity, meaning
        return made

    # The hash of an enumeration is Python code, and operations are part of the keys of programs.
    __hash__ = int.__hash__

    # First come the operations of operands alone, each rounded once.
    ADD = 0, 2, "a + b"
    SUB = 1, 2, "a - b"
    MUL = 2, 2, "a * b"
    DIV = 3, 2, "a / b"
    SQRT = 4, 1, "the square root of a"
    ABS = 5, 1, "a with the sign bit cleared"
    NEG = 6, 1, "a with the sign bit flipped"
    MIN = 7, 2, "a if a < b else b"
    MAX = 8, 2, "a if a > b else b"
    LT = 9, 2, "1 if a < b else 0"
    LE = 10, 2, "1 if a <= b else 0"
    EQ = 11, 2, "1 if a == b else 0"
    WHERE = 12, 3, "b if a != 0 else c"
    POW2 = 13, 1, "2^a for a whole a with a normal result"
    EXPONENT = 14, 1, "the unbiased exponent field of a: floor(log2 |a|) of a normal number"
    # The value of these depends on the element's place: masks.h and philox.h define them, cpu/ranks.inl the ranks.
    KEEP = 15, 1, "a where mask `payload` keeps it, else 0"
    DRAW = 16, 0, "16 random bits, 0 to 65535, of the stream `payload`"
    ROW = 17, 0, "the entry of vector `payload` for the element's row"
    COLUMN = 18, 0, "the entry of vector `payload` for the element's column"
    RANK = 19, 1, "how many elements of the row have a smaller |a|, or an equal one and a lower column"
    # From here on functions: kernels tell them by a number above RANK. elementary.h defines them; a backend without an
    # instruction gets what elementary.py expands them to.
    EXP = 20, 1, "e^a"
    EXPM1 = 21, 1, "e^a - 1"
    EXPM1_NEAR = 22, 1, "e^a - 1 for |a| < 0.35"
    LOG = 23, 1, "the natural logarithm of a normal number above 0"
    LOG1P = 24, 1, "log(1 + a) for a > -1"
    TANH = 25, 1, "the hyperbolic tangent of a"
    DIVERGENCE_NEAR = 26, 1, "(1 + a) artanh(a) - a for |a| < 0.15"
    NEAREST = 27, 1, "the whole number nearest to a, of two the even one, for |a| < 2^22"


OPS = tuple(Op)  # by number


def header() -> str:
    """csrc/ops/operations.h."""
    rows = [f"  // {op.meaning}\n  {op.name.lower()} = {op.value}," for op in Op]
    return "\n".join(
        [
            "// The operations of expressions. Made by `python -m warpmerge.expr.operations`; do not edit.",
            "#pragma once",
            "",
            "namespace warpmerge {",
            "",
            "enum class FormulaOp : int {",
            *rows,
            "};",
            f"constexpr FormulaOp kLastOperation = FormulaOp::{OPS[-1].name.lower()};",
            "",
            "}  // namespace warpmerge",
            "",
        ]
    )


if __name__ == "__main__":
    print(header(), end="")
