"""Runs the Triton kernels that combine in the interpreter against the CPU's, bit for bit.

A program of its own, because TRITON_INTERPRET must be set before triton is imported: see test_triton_kernels.py.
Prints one line per failure, and last the number of cases.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from kernel_helpers import (
    ALL_DTYPES,
    assert_same_bits,
    family,
    output,
    pool,
    signed,
    unaligned,
    weights,
    work,
)
from triton_helpers import at, case, cases, poisoned, run_cases
from triton_launches import CPU, Problem, Request, coefficients, native, rules, ties
from warpmerge.backends.gpu.tables import CHUNK
from warpmerge.requests import KEEP_ALL, KEEP_NONE, RandomMask, TopKMask
from warpmerge.triton_kernels import elect_and_sum


def check_elect_and_sum(*problems, elect, split=None):
    request = Request(*problems, split=split)
    elect_and_sum.launch(request.launch, elect, at(request.nonfinite))
    wanted = [torch.full_like(p.outputs[0], 7.0) for p in problems]
    items = []
    for p, out in zip(problems, wanted, strict=True):
        k = len(p.tensors)
        value, vote, divisor = (list(p.numbers[i * k : (i + 1) * k]) for i in range(3))
        items.append(
            pool(CPU).elect_and_sum(
                p.operands, 65536, value, vote, divisor, p.numbers[3 * k], elect, native(p.keep), output(out)
            )
        )
    work(pool(CPU), *items)
    for p, want in zip(problems, wanted, strict=True):
        assert_same_bits(p.outputs[0], want)
    request.check_nonfinite(items)


@cases("misaligned", dtype=["bf16", "fp32"])
def _(dtype):
    base, tensors = family(dtype, 3, 20_000)
    base, tensors = unaligned(base), [unaligned(t) for t in tensors]
    numbers, keep = coefficients(3), rules(3)
    check_elect_and_sum(Problem(tensors, base, outputs=1, numbers=numbers, keep=keep), elect=True)


@cases("elect_and_sum", dtype=ALL_DTYPES, elect=[False, True], models=[3])
@cases("elect_and_sum", dtype=["bf16", "fp64"], elect=[False, True], models=[1, 2, 5, 9])
def _(dtype, elect, models):
    problems = []
    for seed, count in enumerate((7, 16385, 4099)):
        base, tensors = family(dtype, models, count, seed=seed)
        fp64 = dtype in ("fp64", "mixed64")
        numbers = coefficients(models, vote=(signed, weights)[seed % 2])
        problems.append(Problem(tensors, base, outputs=1, numbers=numbers, keep=rules(models, fp64)))
    check_elect_and_sum(*problems, elect=elect)


@case
def ties_end_exactly():
    tensors, base, keep = ties()
    check_elect_and_sum(Problem(tensors, base, outputs=1, numbers=coefficients(4), keep=keep), elect=False, split=CHUNK)


@case
def elements_that_do_not_change_keep_their_bits():
    base = torch.tensor([-0.0, 0.0, 1e-45, -1.0] * 1100)
    tensors = [base.clone(), base.clone()]
    for elect in (False, True):
        numbers, keep = coefficients(2), [KEEP_ALL, KEEP_NONE]
        check_elect_and_sum(Problem(tensors, base, outputs=1, numbers=numbers, keep=keep), elect=elect)


@cases("elect_and_sum over two segments", elect=[False, True])
def _(elect):
    base, tensors = family("bf16", 3, 40_000)
    keep = [TopKMask(0x3B03126F, 20_000), RandomMask(99, 20_000), TopKMask(0x3A83126F, 16384)]
    check_elect_and_sum(Problem(tensors, base, outputs=1, numbers=coefficients(3), keep=keep), elect=elect, split=CHUNK)


@cases("not finite", dtype=["bf16", "fp16", "fp32", "fp64"], policy=[0, 1, 2])
def _(dtype, policy):
    base, tensors = poisoned(dtype, 3, 18_000)
    keep = rules(3, dtype == "fp64")
    for elect in (False, True):
        numbers = coefficients(3)
        problem = Problem(tensors, base, outputs=1, policy=policy, numbers=numbers, keep=keep)
        check_elect_and_sum(problem, elect=elect)


if __name__ == "__main__":
    run_cases()
