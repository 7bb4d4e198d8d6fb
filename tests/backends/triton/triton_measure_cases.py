"""Runs the Triton kernels that measure, but for `select`, in the interpreter against the CPU's, bit for bit.

A program of its own, because TRITON_INTERPRET must be set before triton is imported: see test_triton_kernels.py.
Prints one line per failure, and last the number of cases.
"""

import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from kernel_helpers import ALL_DTYPES, family
from native_pool import pool
from triton_helpers import at, case, cases, poisoned, run_cases, same
from triton_launches import CPU, Problem, Request, expect
from warpmerge.backends.gpu.tables import CHUNK
from warpmerge.triton_kernels import gram, reduce, reduce_tensor


def check_sums(*problems, split=None):
    request = Request(*problems, split=split)
    partials = np.full((request.blocks, request.models), np.nan)
    reduce_tensor.sums(request.launch, at(partials), at(request.nonfinite))
    got = request.reduce(partials, request.models)
    items = expect(lambda p: pool(CPU).tensor_sums(p.operands, 65536), problems)
    for tensor, one in enumerate(items):
        same(got[tensor], np.array(one.result, np.float64))
    request.check_nonfinite(items)


@cases("sums", dtype=ALL_DTYPES)
def _(dtype):
    problems = []
    for seed, count in enumerate((4099,) if dtype != "bf16" else (1, 16385, 7)):
        base, tensors = family(dtype, 3, count, seed=seed)
        problems.append(Problem(tensors, base))
    check_sums(*problems)


@cases("sums", models=[1, 9])
def _(models):
    base, tensors = family("mixed", models, 4096)
    check_sums(Problem(tensors, base))
    check_sums(Problem(tensors))


@case
def sums_over_two_segments():
    base, tensors = family("bf16", 2, 40_000)
    check_sums(Problem(tensors, base), split=CHUNK)


@cases("sums, not finite", dtype=["bf16", "fp64"])
def _(dtype):
    base, tensors = poisoned(dtype, 2, 18_000)
    check_sums(Problem(tensors, base))


@case
def sums_of_zeros():
    zero = torch.zeros(5000)
    check_sums(Problem([zero, -zero]))


def check_gram(*problems, split=None):
    request = Request(*problems, split=split)
    columns = request.models * (request.models + 1) // 2
    partials = np.full((request.blocks, columns), np.nan)
    gram.launch(request.launch, at(partials), at(request.nonfinite))
    got = request.reduce(partials, columns)
    items = expect(lambda p: pool(CPU).gram(p.operands, 65536), problems)
    for tensor, item in enumerate(items):
        same(got[tensor], np.array(item.result))
    request.check_nonfinite(items)


@cases("gram", dtype=ALL_DTYPES, on_deltas=[False, True])
def _(dtype, on_deltas):
    problems = []
    for seed, count in enumerate((7, 4099) if dtype != "bf16" else (7, 16384, 4099)):
        base, tensors = family(dtype, 3, count, seed=seed)
        problems.append(Problem(tensors, base if on_deltas else None))
    check_gram(*problems)


@cases("gram", models=[1, 2, 5, 9])
def _(models):
    base, tensors = family("bf16", models, 40_000 if models < 3 else 5000)
    check_gram(Problem(tensors, base), split=CHUNK)


@case
def gram_not_finite():
    base, tensors = poisoned("bf16", 2, 18_000)
    check_gram(Problem(tensors, base))
    check_gram(Problem(tensors))


@cases("reduce", rows=[0, 1, 2, 3, 2047, 2048, 2049, 5000])
def _(rows):
    generator = np.random.default_rng(rows)
    partials = np.exp(generator.normal(size=(rows + 5, 7)) * 3)
    wanted = np.zeros((2, 7))
    for tensor, block in enumerate((partials[:3], partials[3 : 3 + rows])):
        level = block.copy()
        while len(level) > 1:
            odd = level[len(level) // 2 * 2 :]
            level = np.concatenate([level[0 : len(level) - len(odd) : 2] + level[1::2], odd])
        wanted[tensor] = level[0] if len(level) else 0.0
    ranges, result = np.array([[0, 3], [3, rows]]), np.full((2, 7), np.nan)
    reduce.launch(at(partials), at(ranges), 2, 7, at(result))
    same(result.reshape(-1), wanted.reshape(-1))


if __name__ == "__main__":
    run_cases()
