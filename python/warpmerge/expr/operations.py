"""The operations of expressions: one table, from which every backend takes names, numbers and operand counts.

`python -m warpmerge.expr.operations > csrc/ops/operations.h` writes the C++ form of the table.
"""

from __future__ import annotations

import enum
from typing import NamedTuple


class Operation(NamedTuple):
    """`arity`: how many operands it has. `meaning`: its value, for operands a, b and c."""

    name: str
    arity: int
    meaning: str


# The position of a row is the operation's number. First come the operations of operands alone, each rounded once.
TABLE = (
    Operation("add", 2, "a + b"),
    Operation("sub", 2, "a - b"),
    Operation("mul", 2, "a * b"),
    Operation("div", 2, "a / b"),
    Operation("sqrt", 1, "the square root of a"),
    Operation("abs", 1, "a with the sign bit cleared"),
    Operation("neg", 1, "a with the sign bit flipped"),
    Operation("min", 2, "a if a < b else b"),
    Operation("max", 2, "a if a > b else b"),
    Operation("lt", 2, "1 if a < b else 0"),
    Operation("le", 2, "1 if a <= b else 0"),
    Operation("eq", 2, "1 if a == b else 0"),
    Operation("where", 3, "b if a != 0 else c"),
    Operation("pow2", 1, "2^a for a whole a with a normal result"),
    Operation("exponent", 1, "the unbiased exponent field of a: floor(log2 |a|) of a normal number"),
    # The value of these depends on the element's place: masks.h, philox.h and rows.h define them.
    Operation("keep", 1, "a where mask `payload` keeps it, else 0"),
    Operation("draw", 0, "16 random bits, 0 to 65535, of the stream `payload`"),
    Operation("row", 0, "the entry of vector `payload` for the element's row"),
    Operation("column", 0, "the entry of vector `payload` for the element's column"),
    Operation("rank", 1, "how many elements of the row have a smaller |a|, or an equal one and a lower column"),
    # Functions: elementary.h defines them. A backend without an instruction gets what elementary.py expands them to.
    Operation("exp", 1, "e^a"),
    Operation("expm1", 1, "e^a - 1"),
    Operation("expm1_near", 1, "e^a - 1 for |a| < 0.35"),
    Operation("log", 1, "the natural logarithm of a normal number above 0"),
    Operation("log1p", 1, "log(1 + a) for a > -1"),
    Operation("tanh", 1, "the hyperbolic tangent of a"),
    Operation("divergence_near", 1, "(1 + a) artanh(a) - a for |a| < 0.15"),
    Operation("nearest", 1, "the whole number nearest to a, of two the even one, for |a| < 2^22"),
)

Op = enum.IntEnum("Op", {operation.name.upper(): number for number, operation in enumerate(TABLE)}, module=__name__)
Op.__hash__ = int.__hash__  # that of an enumeration is Python code, and operations are part of keys
ARITY = {Op[operation.name.upper()]: operation.arity for operation in TABLE}


def header() -> str:
    """csrc/ops/operations.h."""
    rows = [f"  // {o.meaning}\n  {o.name} = {number}," for number, o in enumerate(TABLE)]
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
            f"constexpr FormulaOp kLastOperation = FormulaOp::{TABLE[-1].name};",
            "",
            "}  // namespace warpmerge",
            "",
        ]
    )


if __name__ == "__main__":
    print(header(), end="")
