"""Runs the Triton kernels of formulas, rows and ranks in the interpreter against backends/torch.py, bit for bit.

A program of its own like triton_measure_cases.py. Prints one line per failure, and last the number of cases.
"""

import itertools
import random
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from kernel_helpers import DTYPES, assert_same_bits, family, unaligned
from triton_helpers import at, awkward, case, cases, code, poisoned, run_cases
from warpmerge.backends.gpu.tables import blocks_of, chunks_of, is_aligned, rule_rows
from warpmerge.backends.reference import backend as reference
from warpmerge.dtypes import BY_NAME
from warpmerge.expr.expression import (
    Expr,
    Op,
    add_up,
    base,
    column,
    delta,
    draw,
    equal,
    exp,
    expm1,
    log,
    log1p,
    masked,
    maximum,
    minimum,
    rank,
    row,
    sqrt,
    tanh,
    where,
    wrap,
)
from warpmerge.expr.formula import Formula
from warpmerge.requests import KEEP_ALL, KEEP_NONE, RandomMask, TopKMask
from warpmerge.triton_kernels import formula, ranks

ONE = {False: 0x3B03126F, True: 0x3F60624DD2F1A9FC}  # magnitude keys of 0.002


class Problem:
    """One tensor: inputs, perhaps a base, and the formula in which its own numbers are."""

    def __init__(self, tensors, base, formula, *, policy=1, out=None):
        self.tensors, self.base, self.formula, self.policy = tensors, base, formula, policy
        everything = [*tensors, *([] if base is None else [base])]
        self.count = everything[0].numel()
        self.fp64 = any(t.dtype == torch.float64 for t in everything)
        self.compute = torch.float64 if self.fp64 else torch.float32
        self.out = out or everything[-1].dtype
        self.program = formula.program(len(tensors), fp64=self.fp64)

    def operands(self):
        x = [t.to(self.compute) for t in self.tensors]
        base = None if self.base is None else self.base.to(self.compute)
        if base is not None:
            x = [t - base for t in x]
        if self.policy == 2:
            x = [torch.where(torch.isfinite(d), d, 0.0) for d in x]
        return x, base

    def nonfinite(self):
        return [0 if t is None else int((~torch.isfinite(t)).sum()) for t in [*self.tensors, self.base]]

    def settled(self, result):
        """A result, where it is not finite settled by policy, and how often it is so although all operands are."""
        large = ~torch.isfinite(result)
        sound = torch.stack([torch.isfinite(t) for t in [*self.tensors, self.base] if t is not None]).all(0)
        if self.policy == 2 and self.base is not None:
            _, base = self.operands()
            result = torch.where(large, reference.round_to(base, BY_NAME[str(self.out)[6:]]), result)
        return result, int((large & sound).sum())


class Request:
    """The launch of some problems alike; `cuts`: elements at which each tensor is divided into segments."""

    def __init__(self, *problems, cuts=(), measure=False):
        head = problems[0]
        p = head.program
        self.problems, self.code = problems, SimpleNamespace(program=p, address=0)
        compute = head.compute if measure else head.out
        self.outputs = [[torch.full((q.count,), 123.0, dtype=compute) for _ in p.outputs] for q in problems]
        self.ranks = [[torch.full((q.count,), -1.0, dtype=q.compute) for _ in p.ranked] for q in problems]
        self.order = [torch.zeros(q.count, dtype=torch.int64) for q in problems]
        self.vectors = [[np.ascontiguousarray(v, np.float64) for v in q.program.vectors] for q in problems]
        segment_rows, chunk_map, numbers, rules, words = [], [], [], [], []
        used = []
        for tensor, q in enumerate(problems):
            columns = q.program.columns
            for first, end in itertools.pairwise([0, *(c for c in cuts if c < q.count), q.count]):
                addresses = [0 if t is None else t.data_ptr() + first * t.element_size()
                             for t in (q.base, *q.tensors, *self.outputs[tensor])]  # fmt: skip
                segment_rows.append([end - first, first, len(chunk_map), tensor, blocks_of(first), q.count, *addresses])
                chunk_map += [len(segment_rows) - 1] * chunks_of(end - first)
                numbers.append(q.program.constants)
                rules.append(rule_rows(q.program.rules))
                # Streams of a kept element and of a draw are numbers of 64 bits without a sign.
                words.append([columns, self.order[tensor].data_ptr() + first * 8]
                             + [k - 2**64 if k >= 2**63 else k for k in q.program.keys]
                             + [at(v) for v in self.vectors[tensor]]
                             + [r.data_ptr() + first * r.element_size() for r in self.ranks[tensor]])  # fmt: skip
                used += addresses
        self._memory = [np.array(segment_rows), np.array(chunk_map, np.int32), np.array(numbers, np.float64),
                        np.array(rules, np.int64), np.array(words, np.int64)]  # fmt: skip
        self.nonfinite = np.zeros((len(problems), len(head.tensors) + 2), np.int64)
        self.launch = SimpleNamespace(
            segments=len(segment_rows), chunks=len(chunk_map), models=len(head.tensors), outputs=len(p.outputs),
            inputs=tuple(code(t) for t in head.tensors), base=-1 if head.base is None else code(head.base),
            out=BY_NAME[str(compute).removeprefix("torch.")].code, fp64=head.fp64, policy=head.policy,
            aligned=is_aligned(*used), at_calls=all(p[1] % 8 == 0 for p in segment_rows),
            **dict(zip(["segment_rows", "chunk_map", "numbers", "rules", "words"], map(at, self._memory), strict=True)),
        )  # fmt: skip


def check(*problems, cuts=(), agree=0, measure=False):
    """Writes the values of formulas and compares them with the reference's."""
    request = Request(*problems, cuts=cuts, measure=measure)
    for q, rooms in zip(problems, request.ranks, strict=True):
        x, _ = q.operands()
        for k, room in zip(q.program.ranked, rooms, strict=True):
            room[:] = reference.row_ranks(x[k], q.program.columns)
    formula.launch(request.launch, request.code, not measure, agree, at(request.nonfinite))
    counts = []
    for q, outputs in zip(problems, request.outputs, strict=True):
        x, x_0 = q.operands()
        found = 0
        for m, value in enumerate(reference.evaluate(q.program, x, x_0)):
            if measure:
                wanted = torch.where(torch.isfinite(value), value, 0.0)
            else:
                result = reference.round_to(reference.finish(value, x, x_0, agree), BY_NAME[str(q.out)[6:]])
                wanted, large = q.settled(result)
                found += large
            assert_same_bits(outputs[m], wanted, f"value {m}")
        counts.append([*q.nonfinite(), found])
    assert request.nonfinite.tolist() == counts, f"counted {request.nonfinite.tolist()}, not {counts}"


# --- formulas -------------------------------------------------------------------------------------------------------


def whole(a):
    """A whole number that leaves 2^a normal, from any value."""
    return maximum(minimum(Expr(Op.EXPONENT, (a,)), 90.0), -90.0)


OPERATIONS = {
    "arithmetic": lambda a, b, c: (a + b, a - b, a * b, a / b, b / a, 3.0 - c),
    "signs": lambda a, b, c: (abs(a), -a, -abs(b), sqrt(a), sqrt(abs(b))),
    "order": lambda a, b, c: (minimum(a, b), maximum(a, b), minimum(a, 0.0), maximum(b, -0.0), maximum(a, a)),
    "comparisons": lambda a, b, c: (a < b, a <= b, a > b, a >= b, equal(a, b), equal(a, 0.0), where(a, b, c)),
    "exponents": lambda a, b, c: (Expr(Op.EXPONENT, (a,)), Expr(Op.POW2, (whole(b),)), a * Expr(Op.POW2, (whole(a),))),
    "functions": lambda a, b, c: (exp(a), expm1(b), log(abs(a)), log1p(abs(b)), tanh(c)),
}


@cases("operations", kind=list(OPERATIONS), dtype=["fp32", "fp64"], measure=[False, True])
def _(kind, dtype, measure):
    a = awkward(DTYPES[dtype], 20_000)
    b = a[torch.randperm(len(a), generator=torch.Generator().manual_seed(1))]
    b[::7] = a[::7]
    c = torch.randn(len(a), generator=torch.Generator().manual_seed(2)).to(a.dtype)
    made = Formula(OPERATIONS[kind](delta(0), delta(1), delta(2)))
    check(Problem([a, b, c], None, made), measure=measure)


def random_formula(seed, inputs, length, fp64, count):
    """Operations on operations, of which several are the values; every kind of rule and vector."""
    choose = random.Random(seed)
    columns = choose.choice([1, 7, 64, 1000, count])
    rows = -(-count // columns)
    vector = np.random.default_rng(seed)
    rules = [TopKMask(ONE[fp64]), RandomMask(2**63 + seed, 30_000), TopKMask(ONE[fp64], count // 2), KEEP_ALL]
    made = [delta(k) for k in range(inputs)] + [
        base(),
        row(vector.normal(size=rows)),
        column(vector.normal(size=columns)),
    ]

    def pick():
        return choose.choice(made[-12:])

    unary = [abs, sqrt, lambda a: -a, lambda a: masked(a, choose.choice(rules)), lambda a: Expr(Op.POW2, (whole(a),)),
             lambda a: a + draw(choose.getrandbits(64)) * 2.0**-16, lambda a: a * choose.gauss(0, 1)]  # fmt: skip
    binary = [lambda a, b: a + b, lambda a, b: a - b, lambda a, b: a * b, lambda a, b: a / b, minimum, maximum, equal,
              lambda a, b: a < b, lambda a, b: a <= b, lambda a, b: where(a < b, pick(), a)]  # fmt: skip
    for _ in range(length):
        made.append(choose.choice(unary)(pick()) if choose.random() < 0.3 else choose.choice(binary)(pick(), pick()))
    return Formula(tuple(made[-3:]), columns)


@cases("random programs", dtype=["fp32", "bf16", "fp64"], on_deltas=[False, True], seed=[1, 2, 3])
def _(dtype, on_deltas, seed):
    count = 16384 + 7 * 64
    x_0, tensors = family(dtype, 3, count, seed=seed)
    check(Problem(tensors, x_0 if on_deltas else None, random_formula(seed, 3, 30, dtype == "fp64", count)),
          cuts=(4096,))  # fmt: skip


@cases("random programs to", out=list(DTYPES), dtype=["mixed", "mixed64"])
def _(out, dtype):
    x_0, tensors = family(dtype, 2, 4099)
    check(Problem(tensors, x_0, random_formula(4, 2, 20, dtype == "mixed64", 4099), out=DTYPES[out]))


@cases("every 16-bit pattern", dtype=["bf16", "fp16"], out=["bf16", "fp16", "fp32", "fp64"])
def _(dtype, out):
    every = torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16).view(DTYPES[dtype])
    check(Problem([every], None, Formula((delta(0) * 1.0,)), out=DTYPES[out]))


@cases("rounding", dtype=["fp32", "fp64"], out=list(DTYPES))
def _(dtype, out):
    values = awkward(DTYPES[dtype], 40_000)
    check(Problem([values], None, Formula((delta(0) * 1.0,)), out=DTYPES[out]))


@cases("misaligned", dtype=["bf16", "fp32"])
def _(dtype):
    x_0, tensors = family(dtype, 3, 20_000)
    made = Formula((add_up([delta(k) * 0.3 for k in range(3)]),))
    check(Problem([unaligned(t) for t in tensors], unaligned(x_0), made))


@cases("places", dtype=["bf16", "fp64"], cuts=[(), (4096,), (3 * 1001, 17 * 1001)])
def _(dtype, cuts):
    """Segments of several tensors; those of rows begin anywhere, and their draws in the middle of a call."""
    fp64, columns = dtype == "fp64", 1001
    problems = []
    for seed, rows in enumerate((18, 1, 5)):
        x_0, tensors = family(dtype, 2, rows * columns, seed=seed)
        generator = np.random.default_rng(seed)
        d = [delta(k) for k in range(2)]
        values = (
            masked(d[0], RandomMask(2**64 - 1 - seed, 20_000)) + masked(d[1], TopKMask(ONE[fp64], 9000 + seed)),
            draw(5 + seed) * d[0] + draw(2**63 + seed),
            row(generator.normal(size=rows)) * d[0] + column(generator.normal(size=columns)),
            rank(1) * 0.25 + rank(0) * (1.75 + seed),
            masked(d[0] * 0.5, KEEP_NONE) + masked(d[0] * 0.5, KEEP_ALL),
        )
        problems.append(Problem(tensors, x_0, Formula(values, columns)))
    check(*problems, cuts=cuts)


def check_ranks(*problems, cuts=()):
    request = Request(*problems, cuts=cuts)
    for ordinal, k in enumerate(request.code.program.ranked):
        ranks.launch(request.launch, request.code, ordinal, max(q.program.columns for q in problems))
        for q, found in zip(problems, request.ranks, strict=True):
            x, _ = q.operands()
            assert_same_bits(found[ordinal], reference.row_ranks(x[k], q.program.columns), f"{q.program.columns}, {k}")


def ranked(shapes, dtype, policy=1):
    """Deltas with many that are equal, and some that are not finite."""
    for seed, (rows, columns) in enumerate(shapes):
        _, tensors = family(dtype, 3, rows * columns, seed=seed)
        tensors = [(t * 300).round() for t in tensors]
        for t in tensors:
            t[::97], t[5::89] = float("nan"), -float("inf")
        made = Formula((rank(1) * draw(5) + rank(2) * row(np.ones(rows)),), columns)
        yield Problem(tensors, tensors[0].flip(0), made, policy=policy)


# Sorting takes the interpreter a millisecond for each element.


@cases("ranks", shape=[(9, 1), (5, 16), (4, 17), (2, 64)], dtype=["bf16", "fp64"])
def _(shape, dtype):
    check_ranks(*ranked([shape], dtype), cuts=(shape[1],))


@cases("ranks of several tensors", policy=[0, 2])
def _(policy):
    check_ranks(*ranked([(9, 20), (5, 7), (1, 32)], "mixed", policy))


@case
def ranks_of_long_rows():
    widest = ranks.WIDEST
    ranks.WIDEST = 16
    try:
        check_ranks(*ranked([(2, 35)], "fp32"), cuts=(35,))
        check_ranks(*ranked([(2, 32), (3, 5), (1, 33)], "fp32"))
    finally:
        ranks.WIDEST = widest


@case
def ranks_of_long_rows_in_float64():
    """In pieces of 512 elements; a row lies in two chunks."""
    check_ranks(*ranked([(17, 1000)], "fp64"), cuts=(1000,))
    check_ranks(*ranked([(2, 1500), (3, 100)], "fp64"))


@cases("rows of any length", columns=[1, 2, 63, 16383, 16384, 16385, 40_000])
def _(columns):
    rows = 2 if columns > 5 else 9000
    tensors = [torch.randn(rows * columns, generator=torch.Generator().manual_seed(3))]
    vectors = np.arange(rows) * 0.1 + 1, np.arange(columns) * 0.3
    check(Problem(tensors, None, Formula((row(vectors[0]) * delta(0) + column(vectors[1]),), columns)))


@cases("not finite", dtype=["bf16", "fp16", "fp32", "fp64"], policy=[0, 1, 2])
def _(dtype, policy):
    x_0, tensors = poisoned(dtype, 3, 18_000)
    d = [delta(k) for k in range(3)]
    rules = [masked(d[0], TopKMask(0x7F800000 if dtype != "fp64" else 0x7FF << 52, 7)), masked(d[1] / d[2], KEEP_ALL)]
    made = Formula((add_up(d), minimum(d[0], d[2]), *rules, base() * 2))
    for measure in (False, True):
        check(Problem(tensors, x_0, made, policy=policy), measure=measure)
        check(Problem(tensors, None, made, policy=policy), measure=measure)


@cases("agreeing", dtype=["bf16", "fp32", "fp64"], agree=[1, 2, 3])
def _(dtype, agree):
    _, tensors = family(dtype, 3, 4099, sigma=1e-4)
    tensors[0][::3] = tensors[1][::3] = tensors[2][::3]
    tensors[0][::5] = tensors[1][::5]
    tensors[0][:5] = tensors[1][:5] = tensors[2][:5] = torch.tensor([float("nan"), float("inf"), -0.0, 1e-40, -1e-45])
    check(Problem(tensors, None, Formula((add_up([delta(k) for k in range(3)]) / 3,))), agree=agree)


@case
def elements_that_do_not_change_keep_their_bits():
    x_0 = torch.tensor([-0.0, 0.0, 1e-45, -1.0] * 1100)
    check(Problem([x_0.clone()], x_0, Formula((delta(0), -delta(0), delta(0) * 0.5))))


@case
def long_programs():
    """They are carried out in one way over a chunk, full or not, finite or not."""
    x_0, tensors = poisoned("bf16", 4, 17_000)
    check(Problem(tensors, x_0, random_formula(9, 4, 400, False, 17_000)))


@case
def values_that_are_operands():
    tensors = [torch.randn(100), torch.randn(100)]
    check(Problem(tensors, None, Formula((delta(1), delta(0), base(), wrap(0.3)))))


if __name__ == "__main__":
    run_cases()
