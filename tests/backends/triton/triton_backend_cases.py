"""Requests with formulas on the Triton backend, its kernels interpreted, against backends/torch.py, bit for bit.

A program of its own like triton_measure_cases.py. Prints one line per failure, and last the number of cases.
"""

import functools
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

import conftest  # noqa: F401 (makes the helpers importable)
from device_budget import budget_for
from formula_helpers import (
    KEY,
    adversarial,
    assert_same_tensors,
    carry_out,
    everything,
    formula,
    is_wide,
    prepared,
    random_values,
)
from kernel_helpers import ALL_DTYPES, family, reference
from overflow_cases import KINDS, large, requests
from triton_helpers import case, cases, run_cases
from warpmerge.backends.gpu import triton as backend
from warpmerge.backends.gpu.tables import CHUNK
from warpmerge.expr import expression as f
from warpmerge.requests import KthLargest, Map, RandomMask, Reduce, TopKMask

TILED = 2 * CHUNK + 4097


@functools.cache
def triton(budget=None):
    return backend.create(budget=budget, buffer_bytes=1 << 16)


def tiled(tensors, base, outputs=1, out_dtype=None, **_options):
    """A backend with memory for a chunk of these tensors at a time."""
    made, _ = prepared(tensors, base, outputs=outputs, out_dtype=out_dtype)
    return triton(budget_for([made]))


def compare(request, tensors, base=None, **options):
    wanted, nonfinite, written = carry_out(reference(), request, tensors, base, **options)
    # Tensors of one chunk are not cut.
    devices = [triton(), *([tiled(tensors, base, **options)] if tensors[0].numel() > CHUNK else [])]
    for device in devices:
        value, counted, results = carry_out(device, request, tensors, base, **options)
        assert_same_tensors(results, written, type(request).__name__)
        if isinstance(request, Map):
            continue
        assert counted == nonfinite, f"counted {counted}, not {nonfinite}"
        if isinstance(request, Reduce) and request.kind == "histogram":
            for (low, _), one, other in zip(request.intervals, value, wanted, strict=True):
                coarse = other.bins.reshape(-1, 1 << (one.shift - other.shift)).sum(1)
                both = min(len(coarse), len(one.bins))
                assert one.above == other.above and np.array_equal(coarse[:both], one.bins[:both]), low
                assert not coarse[both:].any() and not one.bins[both:].any(), low
        elif isinstance(wanted, np.ndarray):
            assert np.array_equal(value.view(np.int64), wanted.view(np.int64))
        else:
            assert value == wanted, f"{value}, not {wanted}"


@cases("every instruction", dtype=["bf16", "fp64", "mixed"], on_deltas=[False, True])
def _(dtype, on_deltas):
    base, tensors = adversarial(dtype, 2, 1283)
    values = everything(2, columns=1283, rows=1, keys=[5, 0x7FC00000, 0x7FF8 << 48])
    out = torch.float64 if is_wide(dtype) else torch.float32
    compare(Map(formula(values, 1283), on_deltas), tensors, base if on_deltas else None, outputs=len(values),
            out_dtype=out)  # fmt: skip


@cases("random programs", seed=range(6))
def _(seed):
    dtype, models = ALL_DTYPES[seed], (1, 3, 5)[seed % 3]
    base, tensors = adversarial(dtype, models, TILED, seed=seed)
    policy = ("propagate", "base", "error")[seed % 3]
    compare(Map(formula(random_values(seed, models, outputs=2)), True), tensors, base, outputs=2, nonfinite=policy)


@cases("agreeing", dtype=["fp16", "fp64"])
def _(dtype):
    _, tensors = family(dtype, 3, 1283)
    tensors[1][::2] = tensors[0][::2]
    tensors[2][::3] = tensors[0][::3]
    compare(Map(formula([(f.delta(0) + f.delta(1) + f.delta(2)) / 3]), False, 3), tensors)


@cases("measured values", dtype=["bf16", "mixed64"])
def _(dtype):
    fp64, count = is_wide(dtype), 3000 if is_wide(dtype) else TILED
    base, tensors = adversarial(dtype, 2, count)
    one = 0x3FF << 52 if fp64 else 127 << 23
    values = formula([*random_values(3, 2, outputs=1), f.delta(0) * 0.5])
    compare(Reduce("sum", values), tensors, base, nonfinite="base")
    compare(Reduce("histogram", values, intervals=((0, 2 * one), (one - 100, one + 100))), tensors, base)
    if fp64:
        compare(KthLargest((count // 2, 100), of=values), tensors, base)
        compare(Reduce("histogram", intervals=((0, 2 * one), (5, 5))), tensors, base)


@case
def selection_in_tiles():
    base, tensors = family("bf16", 1, TILED)
    compare(KthLargest((TILED // 3,), of=formula([f.delta(0) * 0.5])), tensors, base)


@cases("rows", columns=[7, 257, 5000, TILED])
def _(columns):
    base, tensors = adversarial("bf16", 2, columns * max(1, 3000 // columns))
    values = formula([f.delta(0) * f.delta(1), f.delta(1), -abs(f.delta(0)) * f.draw(KEY)], columns)
    for kind in ("sum", "max"):
        compare(Reduce(kind, values, "row", "float64"), tensors, base)


# 70 rows make 35 blocks of a column, of two each; 600 columns make five tiles; the long row is cut.
@cases("products", dtype=["bf16", "fp64"], shape=[(70, 7), (2, 600), (1, TILED)])
def _(dtype, shape):
    rows, columns = shape
    base, tensors = adversarial(dtype, 2, rows * columns)
    values = formula([f.delta(0), f.delta(1) * f.draw(KEY)], columns)
    for over in ("row", "column")[: 1 + (columns < TILED)]:  # of columns, whole rows have to fit into a tile
        compare(Reduce("sum", values, over, "float64", ((0, 1), (1, 1), (1, 0))), tensors, base)
        compare(Reduce("min", values, over), tensors, base)


@cases("vectors and draws in rows", columns=[7, 5000])
def _(columns):
    rows = TILED // columns
    base, tensors = family("bf16", 2, rows * columns)
    vectors = np.linspace(1, 2, rows), np.linspace(-1, 1, columns)
    value = (
        f.row(vectors[0]) * f.delta(0) + f.column(vectors[1]) * f.draw(KEY) + f.masked(f.delta(1), RandomMask(5, 9999))
    )
    compare(Map(formula([value], columns), True), tensors, base)


@case
def ranks():
    base, tensors = adversarial("bf16", 2, 3 * 40)
    compare(Map(formula([f.rank(0) + f.rank(1) * f.delta(0)], 40), True), tensors, base)
    base, tensors = adversarial("fp64", 2, 3 * 400)
    compare(Map(formula([f.rank(0) + f.rank(1) * f.delta(0)], 400), True), tensors, base, nonfinite="base")


@case
def several_tensors_of_one_structure():
    """Constants, rules, keys and vectors differ from tensor to tensor, the kernel does not."""
    base, tensors = family("bf16", 2, 700)
    for i in range(3):
        kept = f.masked(f.delta(0) * (i + 0.5), TopKMask(120 << 23, i))
        compare(Map(formula([kept + f.column(np.full(7, i)) * f.draw(KEY + i)], 7), True), tensors, base)


@cases("too large", kind=KINDS, policy=["error", "base"])
def _(kind, policy):
    base, tensors, out = large(kind, 3, 20_000)
    for request, outputs in requests(3):
        start = base if request.on_deltas else None
        options = {"outputs": outputs, "out_dtype": out, "nonfinite": policy}
        wanted, written = carry_out(reference(), request, tensors, start, **options)[1:]
        counted, results = carry_out(triton(), request, tensors, start, **options)[1:]
        assert_same_tensors(results, written, request)
        assert counted == wanted, f"{request}: counted {counted}, not {wanted}"


if __name__ == "__main__":
    run_cases()
