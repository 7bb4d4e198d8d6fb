"""Functions that are instructions on the CPU: the bits of what programs for other backends spell out."""

import numpy as np
import pytest
import torch
from formula_helpers import assert_same_tensors, carry_out
from kernel_helpers import ISAS, cpu, reference
from warpmerge.expr import expression as f
from warpmerge.expr.elementary import EXPANSIONS
from warpmerge.expr.expression import Expr, Op, delta
from warpmerge.expr.formula import Formula
from warpmerge.requests import Map

FLOATS = {"fp32": (np.float32, np.uint32), "fp64": (np.float64, np.uint64)}
EDGES = [0.0, 1e-8, 0.2, 0.25, 0.3, 0.35, 0.5, 1.0, 2.0**0.5, 2.0, 20.0, 40.0, 87.0, 88.0, 708.0, 709.0]
functions = Formula(tuple(Expr(op, (delta(0),)) for op in EXPANSIONS))


def sweep(dtype: str, count: int = 60_000) -> torch.Tensor:
    """Bit patterns from end to end (subnormals, infinities and NaN among them), the neighbours of where functions
    change from one form to another, and ordinary arguments."""
    floats, integers = FLOATS[dtype]
    bits = np.iinfo(integers).bits
    patterns = np.linspace(0, 2.0**bits * (1 - 1e-15), count).astype(np.uint64).astype(integers)
    edges = np.array(EDGES, floats).view(integers).astype(np.int64)[:, None] + np.arange(-50, 50)
    edges = np.maximum(edges, 0).ravel().astype(integers)
    edges = np.concatenate([edges, edges | integers(1 << (bits - 1))])
    ordinary = np.concatenate([np.linspace(-b, b, count) for b in (1e-3, 0.5, 3.0, 100.0, 800.0)]).astype(floats)
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, -np.nan], floats)
    return torch.from_numpy(np.concatenate([patterns.view(floats), edges.view(floats), ordinary, special]))


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_argument(dtype):
    x = sweep(dtype)
    request = Map(functions, on_deltas=False)
    wanted = carry_out(reference(), request, [x], outputs=len(EXPANSIONS))[2]
    for isa in ISAS:
        got = carry_out(cpu(isa, 2, None), request, [x], outputs=len(EXPANSIONS))[2]
        for op, *both in zip(EXPANSIONS, got, wanted, strict=True):
            assert_same_tensors(both[:1], both[1:], (isa, op.name))


@pytest.mark.parametrize("fp64", [False, True])
def test_only_those_who_ask_get_functions(fp64):
    spelled, native = (functions.program(1, fp64, functions=flag) for flag in (False, True))
    assert all(op <= Op.RANK for op, *_ in spelled.code)
    assert [op for op, *_ in native.code] == list(EXPANSIONS)
    assert functions.program(1, fp64) is spelled


@pytest.mark.parametrize("fp64", [False, True])
def test_functions_of_functions(fp64):
    values = (f.exp(f.tanh(delta(0)) * f.log1p(abs(delta(1)))), f.expm1(f.exp(delta(0))) + f.exp(delta(0)))
    made = Formula(values).program(2, fp64, functions=True)
    wanted = [Op.TANH, Op.ABS, Op.LOG1P, Op.MUL, Op.EXP, Op.EXP, Op.EXPM1, Op.ADD]
    assert sorted(op for op, *_ in made.code) == sorted(wanted)


@pytest.mark.parametrize(
    ("function", "exact", "ends", "ulp"),
    [
        (f.exp, np.exp, (-80, 80), 1.5),
        (f.expm1, np.expm1, (-10, 10), 4),
        (f.expm1_near, np.expm1, (-0.35, 0.35), 4),
        (f.log, np.log, (1e-6, 1e6), 4),
        (f.log1p, np.log1p, (-0.9, 10), 5),
        (f.tanh, np.tanh, (-10, 10), 4),
        (f.divergence_near, lambda x: (1 + x) * np.arctanh(x) - x, (-0.15, 0.15), 4),
    ],
)
def test_accuracy(function, exact, ends, ulp):
    """Of float32, against long doubles."""
    x = np.linspace(*ends, 100_001).astype(np.float32)
    x = x[np.abs(x) > 1e-3]
    (got,) = carry_out(cpu(), Map(Formula((function(delta(0)),)), False), [torch.from_numpy(x)])[2]
    wanted = exact(x.astype(np.longdouble))
    assert np.max(np.abs(got.numpy() - wanted) / np.spacing(np.abs(wanted).astype(np.float32))) <= ulp
