"""Formulas as programs: straight-line code that a backend carries out for each element."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import MergeError
from . import elementary
from .expression import Expr, Given, Leaf, Op
from .masks import Mask, RankMask

LONGEST = 4096  # instructions of a program


@dataclass(frozen=True)
class Program:
    """Straight-line code. Operands are numbered: inputs deltas, the base, `registers` temporaries, then the constants.

    code: rows of (op, target, a, b, c, payload); targets are temporaries, unused fields 0. outputs: operand numbers.
    keys: of random streams. vectors: float64 arrays; `by_row` says which are per row. `columns`: length of a row.
    ranked: inputs whose row ranks are asked for, in order.
    """

    inputs: int
    code: tuple[tuple[int, int, int, int, int, int], ...]
    registers: int
    outputs: tuple[int, ...]
    constants: tuple[float, ...]
    rules: tuple[Mask, ...]
    keys: tuple[int, ...]
    vectors: tuple[Any, ...]
    by_row: tuple[bool, ...]
    columns: int
    ranked: tuple[int, ...]

    @property
    def structure(self) -> tuple:
        """What does not change from tensor to tensor."""
        return self.inputs, self.code, self.registers, self.outputs, len(self.constants), self.by_row


def compiled(values: Sequence[Expr], inputs: int, fp64: bool, functions: bool = False) -> Program:
    """Without a length of rows. Places that are `Given` are left as they are. functions: kept as instructions."""
    return _Compiler(inputs, fp64, functions).compile(values)


class _Compiler:
    """Expressions to instructions: equal ones once, temporaries reused as soon as their last reader is done."""

    def __init__(self, inputs: int, fp64: bool, functions: bool) -> None:
        self.inputs, self.fp64, self.functions = inputs, fp64, functions
        self.numbers: dict[tuple, int] = {}  # (op, argument numbers, payload) -> value number
        self.nodes: list[tuple] = []
        self.seen: dict[int, int] = {}  # id of an expression -> value number
        self.tables: dict[str, list] = {"rules": [], "keys": [], "vectors": [], "by_row": []}

    def compile(self, values: Sequence[Expr]) -> Program:
        results = [self._number(v) for v in values]
        constants = [n for n, node in enumerate(self.nodes) if node[0] is Leaf.CONSTANT]
        number_of = {n: number for number, n in enumerate(constants)}
        steps = [n for n, node in enumerate(self.nodes) if isinstance(node[0], Op)]
        if len(steps) > LONGEST:
            raise MergeError(f"a formula of {len(steps)} operations is longer than the {LONGEST} that are supported.")
        last = dict.fromkeys(results, len(self.nodes))
        for n in steps:
            for a in self.nodes[n][1]:
                last[a] = max(last.get(a, 0), n)
        where_is: dict[int, int] = {}
        free: list[int] = []
        used = 0
        for n in steps:
            for a in dict.fromkeys(self.nodes[n][1]):
                if last[a] == n and isinstance(self.nodes[a][0], Op):
                    free.append(where_is[a])
            if not free:
                free.append(used)
                used += 1
            where_is[n] = free.pop()
        first = self.inputs + 1

        def operand(n: int) -> int:
            op, _, payload = self.nodes[n]
            if op is Leaf.CONSTANT:
                return first + used + number_of[n]
            if op is Leaf.DELTA and not 0 <= payload < self.inputs:
                raise MergeError(f"a formula names input {payload} of {self.inputs}.")
            return payload if op is Leaf.DELTA else self.inputs if op is Leaf.BASE else first + where_is[n]

        code = []
        for n in steps:
            op, arguments, payload = self.nodes[n]
            a, b, c = [operand(m) for m in arguments] + [0] * (3 - len(arguments))
            code.append((int(op), operand(n), a, b, c, payload or 0))
        return Program(
            self.inputs,
            tuple(code),
            used,
            tuple(map(operand, results)),
            tuple(self.nodes[n][2] for n in constants),
            *(tuple(table) for table in self.tables.values()),
            columns=0,
            ranked=tuple(sorted({a for op, _, a, *_ in code if op == Op.RANK})),
        )

    def _number(self, root: Expr) -> int:
        pending = [root]  # no recursion: a sorting network is deep
        while pending:
            expr = pending[-1]
            expr = self._spelled(expr)
            missing = [a for a in expr.args if id(a) not in self.seen]
            if missing:
                pending += reversed(missing)
                continue
            self.seen[id(pending.pop())] = self._value(expr)
        return self.seen[id(root)]

    def _spelled(self, expr: Expr) -> Expr:
        """What a function is made of, unless it is kept as an instruction."""
        while not self.functions and expr.op in elementary.SPELLED:
            cache = expr.__dict__.setdefault("_spelled", {})
            if self.fp64 not in cache:
                cache[self.fp64] = elementary.SPELLED[expr.op](expr.args[0], self.fp64)
            expr = cache[self.fp64]
        return expr

    def _value(self, expr: Expr) -> int:
        payload = expr.payload
        if expr.op is Op.KEEP:
            if isinstance(payload, RankMask):
                raise MergeError("a formula cannot keep by rank: compare draw(key) with an expression of rank(k).")
            payload = self._tabled("rules", payload)
        elif expr.op is Op.DRAW:
            payload = self._tabled("keys", payload)
        elif expr.op in (Op.ROW, Op.COLUMN):
            vectors = self.tables["vectors"]
            known = [i for i, v in enumerate(vectors) if v is payload or (isinstance(v, Given) and v == payload)]
            if not known:
                vectors.append(payload)
                self.tables["by_row"].append(expr.op is Op.ROW)
            payload = known[0] if known else len(vectors) - 1
        elif expr.op is Leaf.CONSTANT:
            payload = payload if isinstance(payload, Given) else (payload, math.copysign(1, payload))
        key = (expr.op, tuple(self.seen[id(a)] for a in expr.args), payload)
        if key not in self.numbers:
            self.numbers[key] = len(self.nodes)
            self.nodes.append((*key[:2], expr.payload if expr.op is Leaf.CONSTANT else payload))
        return self.numbers[key]

    def _tabled(self, name: str, entry: Any) -> int:
        table = self.tables[name]
        if entry not in table:
            table.append(entry)
        return table.index(entry)
