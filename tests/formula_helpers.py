"""Formulas for tests: random ones, values that are meant to hurt, and requests carried out by any backend."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from kernel_helpers import DTYPES, INTEGERS, MIXED, assert_same_bits, buffer, changed, cpu, family, reference, task
from warpmerge.expr import expression as f
from warpmerge.expr.expression import Expr, Op
from warpmerge.expr.formula import Formula
from warpmerge.requests import KEEP_ALL, KEEP_NONE, RandomMask, TopKMask
from warpmerge.tasks import MemorySink, TensorTask

SPECIAL = [0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 1.1754942e-38, 3.4e38, -3.4e38, 0.1, float("inf"), -float("inf")]
KEY = 0x0123456789ABCDEF


def adversarial(dtype: str, models: int, count: int, seed: int = 0) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """A base and models of any bit patterns (NaN of all kinds), of special values, and of ordinary weights."""
    base, tensors = family(dtype, models, count, seed=seed, sigma=0.5)
    g = torch.Generator().manual_seed(seed + 1)
    for tensor in [base, *tensors]:
        integer = torch.from_numpy(np.empty(0, INTEGERS[tensor.element_size()])).dtype
        any_bits = torch.randint(-(2**62), 2**62, (count,), generator=g).to(integer).view(tensor.dtype)
        special = torch.tensor(SPECIAL, dtype=torch.float64)[torch.randint(len(SPECIAL), (count,), generator=g)]
        kind = torch.randint(4, (count,), generator=g)
        tensor.copy_(torch.where(kind == 0, any_bits, torch.where(kind == 1, special.to(tensor.dtype), tensor)))
    return base, tensors


def threshold(tensors: Sequence[torch.Tensor], fp64: bool) -> int:
    """A key that some elements have and some are above."""
    kind = np.float64 if fp64 else np.float32
    values = np.sort(np.abs(tensors[0].double().numpy().astype(kind)))
    return int(values[values.size // 2].view(np.int64 if fp64 else np.int32)) if values.size else 5


def everything(
    inputs: int, *, columns: int = 0, rows: int = 0, keys: Sequence[int] = (0,), tie_end: int = 700
) -> list[Expr]:
    """One expression for each instruction and spelled function, of several operands."""
    a, b, c = f.delta(0), f.delta(inputs - 1), f.base()
    whole = Expr(Op.EXPONENT, (f.minimum(f.maximum(abs(a), 1e-20), 1e20),))
    made = [a + b, a - b, a * b, a / b, f.sqrt(abs(a)), f.sqrt(b), abs(b), -b, f.minimum(a, b), f.maximum(a, b)]
    made += [a < b, a <= b, f.equal(a, b), f.where(a, b, c), f.where(a < c, 2.5, b), Expr(Op.POW2, (whole,)), whole]
    made += [Expr(Op.EXPONENT, (b,)), c, a, f.wrap(0.1), c + 1.0, 1.0 / b, 2.0 - a, f.draw(KEY), f.draw(KEY + 1) * a]
    made += [f.exp(a), f.expm1(b), f.log(abs(a)), f.log1p(abs(b)), f.tanh(a * 3)]
    rules = [
        KEEP_ALL,
        KEEP_NONE,
        RandomMask(KEY, 30000),
        *(TopKMask(k, t) for k in keys for t in (0, tie_end, 2**63 - 1)),
    ]
    made += [f.masked(x, rule) for rule in rules for x in (a, c, a * b)]
    if columns:
        made += [f.column(np.linspace(-1, 2, columns)), f.row(np.geomspace(1e-3, 1e3, rows) if rows else np.empty(0))]
    return made


def random_values(
    seed: int, inputs: int, leaves: Sequence[Expr] = (), *, steps: int = 40, outputs: int = 1
) -> list[Expr]:
    """Expressions of a random directed acyclic graph."""
    choose = random.Random(seed)
    nodes = [*(f.delta(k) for k in range(inputs)), f.base(), f.wrap(0.5), f.wrap(-3.0), f.draw(KEY + seed), *leaves]
    binary = [Expr.__add__, Expr.__sub__, Expr.__mul__, Expr.__truediv__, f.minimum, f.maximum, Expr.__lt__, f.equal]
    unary = [abs, Expr.__neg__, f.sqrt, lambda x: f.masked(x, TopKMask(1 << 29, 99)), lambda x: f.exp(x)]
    for _ in range(steps):
        recent = [choose.choice(nodes[-6:] if choose.random() < 0.5 else nodes) for _ in range(3)]
        kind = choose.random()
        if kind < 0.7:
            nodes.append(choose.choice(binary)(*recent[:2]))
        elif kind < 0.9:
            nodes.append(choose.choice(unary)(recent[0]))
        else:
            nodes.append(f.where(*recent))
    return nodes[-outputs:]


def formula(values: Sequence[Expr], columns: int = 0) -> Formula:
    return Formula(tuple(values), columns)


def prepared(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor | None = None,
    *,
    outputs: int = 1,
    out_dtype: torch.dtype | None = None,
    nonfinite: str = "propagate",
    place: Any = buffer,
) -> tuple[TensorTask, list[torch.Tensor]]:
    """A task and what it writes. `place`: tensor to View."""
    made, _ = task("task_arithmetic", tensors, base, weight=1.0, nonfinite=nonfinite)
    kind = out_dtype or (base if base is not None else tensors[0]).dtype
    results = [torch.full(tensors[0].shape, 123.0, dtype=kind) for _ in range(outputs)]
    made = changed(
        made,
        out_dtype=buffer(results[0]).dtype,
        sinks=[MemorySink(result.data_ptr(), result) for result in results],
        inputs=[place(t) for t in tensors],
        base=None if base is None else place(base),
    )
    return made, results


def carry_out(
    backend: Any, request: Any, tensors: Sequence[torch.Tensor], base: torch.Tensor | None = None, **options: Any
) -> tuple[Any, tuple[int, ...], list[torch.Tensor]]:
    """What a backend answers, what it counts as not finite, and what it writes. `options`: of `prepared`."""
    made, results = prepared(tensors, base, **options)
    [outcome] = backend.launch([(made, request)]).wait()
    return outcome.value, outcome.nonfinite, results


def assert_same_tensors(got: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor], what: Any) -> None:
    for m, (one, other) in enumerate(zip(got, wanted, strict=True)):
        assert_same_bits(one, other, (what, f"output {m}"))


def is_wide(dtype: str) -> bool:
    return torch.float64 in MIXED.get(dtype, (DTYPES.get(dtype),))


def compare_arrays(
    request: Any,
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    configurations: Sequence[Any],
    **options: Any,
) -> np.ndarray:
    """The reference's measurement, a float64 array, to which the CPU's must be equal bit for bit."""
    wanted, counts, _ = carry_out(reference(), request, tensors, base, **options)
    for configuration in configurations:
        got, nonfinite, _ = carry_out(cpu(*configuration), request, tensors, base, **options)
        got = np.asarray(got)
        assert (got.dtype, got.shape, nonfinite) == (np.float64, wanted.shape, counts), configuration
        assert np.array_equal(got.view(np.int64), wanted.view(np.int64)), configuration
    return wanted
