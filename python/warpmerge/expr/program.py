"""Programs: expressions as straight-line code, the form that backends carry out for each element.

A model has thousands of tensors. A method builds the same expressions for each tensor, with other numbers. So a program
has two parts: a structure, compiled once and kept, and the values of its slots. `_Walk` visits each expression once. It
writes down the structure as a tuple of integers, the key of compiled structures, and collects the numbers, masks, keys
and vectors. For an election among three models, 32 instructions, it takes 15 us to build the expressions, 160 us to
compile them and 12 us to find the compiled structure again.
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
    """A program without the values of its slots. Programs that differ in these values only share a structure.

    Operands are numbered in this order: deltas, base, temporaries, constants in slots, literals.

    Attributes:
        code: rows of (op, target, a, b, c, payload). Targets are temporaries; unused fields are 0.
        inputs: number of deltas.
        registers: number of temporaries.
        outputs: operand numbers of the values.
        literals: the literals' numbers.
        by_row: for each vector, whether it has an entry per row, else per column.
        ranked: the inputs whose ranks are needed, in order.
        native: a backend's own form of the code; that backend sets it.
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
    """A structure and the values of its slots.

    Attributes:
        constants: numbers of the slots, then the literals.
        rules: masks.
        keys: keys of random numbers.
        vectors: float64 arrays, (rows,) or (columns,) each.
        columns: length of a row; 0 if it does not matter.
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
    """The program of expressions, with a structure from the cache if there is one. Arguments: see Formula."""
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
