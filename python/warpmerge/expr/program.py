"""Programs: straight-line code that a backend carries out for each element, and how expressions become it.

A model has thousands of tensors, and a method builds the same expressions with other numbers for each. So a program has
two parts: its structure, which is compiled once and kept, and what fills its slots. `_Walk` goes over the expressions
once. It writes down their structure as a tuple of integers, by which compiled structures are looked up, and collects
the numbers, masks, keys and vectors. For an election among three models, 32 instructions, it takes 15 us to build the
expressions, 160 us to compile them and 12 us to find the compiled structure again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from ..errors import MergeError
from .elementary import EXPANSIONS
from .expression import BASE, DELTA, LITERAL, SLOT, Expr, number_of
from .masks import Mask
from .operations import Op

LONGEST = 4096  # instructions of a program
MOST_KEPT = 1024  # structures
_KEEP, _DRAW, _ROW, _COLUMN, _RANK = Op.KEEP, Op.DRAW, Op.ROW, Op.COLUMN, Op.RANK

Row = tuple[int, int, int, int, int, int]


class Structure:
    """What is the same for all programs of expressions that differ in what fills their slots only.

    code: rows of (op, target, a, b, c, payload); targets are temporaries, unused fields 0. Operands are numbered:
    `inputs` deltas, the base, `registers` temporaries, the constants in slots, the literals. outputs: operand numbers.
    by_row: of each vector, whether it has an entry per row or per column. ranked: inputs whose row ranks are asked for,
    in order. native: a backend's own form of the code, made by it.
    """

    __slots__ = ("by_row", "code", "inputs", "literals", "native", "outputs", "ranked", "registers")

    def __init__(
        self,
        inputs: int,
        code: tuple[Row, ...],
        registers: int,
        outputs: tuple[int, ...],
        literals: tuple[float, ...],
        by_row: tuple[bool, ...],
    ) -> None:
        self.inputs, self.code, self.registers, self.outputs = inputs, code, registers, outputs
        self.literals, self.by_row = literals, by_row
        self.ranked = tuple(sorted({a for op, _, a, *_ in code if op == _RANK}))
        self.native: Any = None


class Program:
    """A structure and what fills its slots.

    constants: numbers, those of slots before the literals. rules: masks. keys: of random streams. vectors: float64
    arrays. columns: length of a row, 0 if it is not known.
    """

    __slots__ = ("columns", "constants", "keys", "native", "rules", "structure", "vectors")

    def __init__(
        self,
        structure: Structure,
        constants: tuple[float, ...],
        rules: tuple[Mask, ...],
        keys: tuple[int, ...],
        vectors: tuple[Any, ...],
        columns: int,
    ) -> None:
        self.structure, self.constants, self.rules, self.keys = structure, constants, rules, keys
        self.vectors, self.columns = vectors, columns
        self.native: Any = None

    @property
    def inputs(self) -> int:
        return self.structure.inputs

    @property
    def code(self) -> tuple[Row, ...]:
        return self.structure.code

    @property
    def registers(self) -> int:
        return self.structure.registers

    @property
    def outputs(self) -> tuple[int, ...]:
        return self.structure.outputs

    @property
    def by_row(self) -> tuple[bool, ...]:
        return self.structure.by_row

    @property
    def ranked(self) -> tuple[int, ...]:
        return self.structure.ranked


_kept: OrderedDict[tuple, Structure] = OrderedDict()


def program_of(values: Sequence[Expr], columns: int, first: int, inputs: int, fp64: bool, functions: bool) -> Program:
    """See Formula."""
    walk = _Walk(values)
    key = inputs, fp64, functions, *walk.key
    structure = _kept.get(key)
    if structure is None:
        structure = _kept[key] = compiled(values, walk, inputs, fp64, functions)
        if len(_kept) > MOST_KEPT:
            _kept.popitem(last=False)
    elif len(_kept) == MOST_KEPT:
        _kept[key] = structure  # another thread may have dropped it
        _kept.move_to_end(key)
    rules = tuple(walk.rules)
    if first:
        rules = tuple(rule.offset_by(first) for rule in rules)
    constants = (*walk.constants, *structure.literals)
    return Program(structure, constants, rules, tuple(walk.keys), tuple(walk.vectors), columns or walk.columns)


class _Walk:
    """The structure of expressions as a sequence of integers, and what fills their slots in the order of `nodes`.

    columns: length of a row, if a rank knows it, else 0.
    """

    __slots__ = ("columns", "constants", "key", "keys", "nodes", "rules", "vectors")

    def __init__(self, values: Sequence[Expr]) -> None:
        position = {expr: number for number, expr in enumerate(dict.fromkeys(values))}
        self.nodes = nodes = list(position)
        self.key = key = [len(values), *(position[expr] for expr in values)]
        self.columns = 0
        self.constants: list[float] = []
        self.rules: list[Mask] = []
        self.keys: list[int] = []
        self.vectors: list[Any] = []
        constants = self.constants
        find, write = position.get, key.append
        for expr in nodes:  # which grows: an operand is put behind what reads it first
            op = expr.op
            write(op)
            if op == SLOT:
                constants.append(expr.payload)
            elif op < 0:
                write(expr.payload)
            else:
                for operand in expr.args:
                    number = find(operand)
                    if number is None:
                        number = position[operand] = len(nodes)
                        nodes.append(operand)
                    write(number)
                if expr.payload is not None:
                    self._place(op, expr.payload)

    def _place(self, op: int, payload: Any) -> None:
        if op == _KEEP:
            self.rules.append(payload)
        elif op == _DRAW:
            self.keys.append(payload)
        elif op == _RANK:
            self.columns = self.columns or payload
        else:
            self.vectors.append(payload)


def compiled(values: Sequence[Expr], walk: _Walk, inputs: int, fp64: bool, functions: bool) -> Structure:
    """The instructions of the expressions. functions: kept as instructions, else expanded."""
    return _Compiler(walk, inputs, fp64, functions).compile(values)


class _Compiler:
    """Expressions to instructions: equal ones once, temporaries reused as soon as their last reader is done."""

    def __init__(self, walk: _Walk, inputs: int, fp64: bool, functions: bool) -> None:
        self.inputs, self.fp64, self.functions = inputs, fp64, functions
        self.slots = len(walk.constants)
        self.by_row = tuple(e.op == _ROW for e in walk.nodes if e.op in (_ROW, _COLUMN))
        self.place: dict[Expr, int] = {}  # of what has a slot: which of its kind
        for kinds in ((SLOT,), (_KEEP,), (_DRAW,), (_ROW, _COLUMN)):
            self.place.update((e, n) for n, e in enumerate(e for e in walk.nodes if e.op in kinds))
        self.numbers: dict[tuple, int] = {}  # (op, argument numbers, payload) -> value number
        self.nodes: list[tuple[int, tuple[int, ...], Any]] = []
        self.seen: dict[Expr, int] = {}  # -> value number
        self.expansions: dict[Expr, Expr] = {}

    def compile(self, values: Sequence[Expr]) -> Structure:
        results = [self._number(v) for v in values]
        literals = [n for n, (op, *_) in enumerate(self.nodes) if op == LITERAL]
        steps = [n for n, (op, *_) in enumerate(self.nodes) if op >= 0]
        if len(steps) > LONGEST:
            raise MergeError(
                f"a formula of {len(steps)} operations is longer than {LONGEST}, the most that are supported."
            )
        where_is, used = self._registers(steps, results)
        first = self.inputs + 1
        literal_at = {n: first + used + self.slots + number for number, n in enumerate(literals)}

        def operand(n: int) -> int:
            op, _, payload = self.nodes[n]
            if op >= 0:
                return first + where_is[n]
            if op == DELTA and not 0 <= payload < self.inputs:
                raise MergeError(
                    f"a formula names input {payload}, but there are {self.inputs} inputs, counted from 0."
                )
            if op == SLOT:
                return first + used + payload
            return payload if op == DELTA else self.inputs if op == BASE else literal_at[n]

        code = []
        for n in steps:
            op, arguments, payload = self.nodes[n]
            a, b, c = [operand(m) for m in arguments] + [0] * (3 - len(arguments))
            code.append((int(op), operand(n), a, b, c, payload or 0))
        numbers = tuple(number_of(Expr(LITERAL, (), self.nodes[n][2])) for n in literals)
        return Structure(self.inputs, tuple(code), used, tuple(map(operand, results)), numbers, self.by_row)

    def _registers(self, steps: Sequence[int], results: Sequence[int]) -> tuple[dict[int, int], int]:
        """The temporary of each step, and how many there are."""
        last = dict.fromkeys(results, len(self.nodes))
        for n in steps:
            for a in self.nodes[n][1]:
                last[a] = max(last.get(a, 0), n)
        where_is: dict[int, int] = {}
        free: list[int] = []
        used = 0
        for n in steps:
            for a in dict.fromkeys(self.nodes[n][1]):
                if last[a] == n and self.nodes[a][0] >= 0:
                    free.append(where_is[a])
            if not free:
                free.append(used)
                used += 1
            where_is[n] = free.pop()
        return where_is, used

    def _number(self, root: Expr) -> int:
        pending = [root]  # no recursion: a sorting network is deep
        while pending:
            expr = self._expanded(pending[-1])
            missing = [a for a in expr.args if a not in self.seen]
            if missing:
                pending += reversed(missing)
                continue
            self.seen[pending.pop()] = self._value(expr)
        return self.seen[root]

    def _expanded(self, expr: Expr) -> Expr:
        """What a function is made of, unless it is kept as an instruction."""
        if self.functions or expr.op not in EXPANSIONS:
            return expr
        if expr not in self.expansions:
            self.expansions[expr] = self._expanded(EXPANSIONS[expr.op](expr.args[0], self.fp64))
        return self.expansions[expr]

    def _value(self, expr: Expr) -> int:
        payload = None if expr.op == _RANK else self.place.get(expr, expr.payload)
        node = expr.op, tuple(self.seen[a] for a in expr.args), payload
        if node not in self.numbers:
            self.numbers[node] = len(self.nodes)
            self.nodes.append(node)
        return self.numbers[node]
