"""Runs the Triton kernels of `select` in the interpreter against the CPU's, bit for bit.

A program of its own, because TRITON_INTERPRET must be set before triton is imported: see test_triton_kernels.py.
Prints one line per failure, and last the number of cases.
"""

import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from kernel_helpers import ALL_DTYPES, family
from native_pool import pool, work
from triton_helpers import at, case, cases, poisoned, run_cases
from triton_launches import CPU, Problem, Request
from warpmerge.backends.gpu.tables import CHUNK
from warpmerge.requests import NO_TIE_END
from warpmerge.triton_kernels import select


def check_select(*problems, counts, keep_all=False, split=None, bracket=None):
    request = Request(*problems, split=split)
    launch, pairs = request.launch, request.tensors * request.models
    fp64 = launch.fp64
    state = np.zeros((request.tensors, request.models, 8), np.int64)
    state[..., 0] = counts
    state[..., 2] = 2**63 - 1 if fp64 else 2**31 - 1
    state[..., 4], state[..., 5] = -1, NO_TIE_END
    state[..., 6] = np.where(state[..., 0] == 0, 2, 0)
    bins = np.zeros((request.tensors, request.models, 2050), np.int64)
    tie_counts = np.full((request.blocks, request.models), -1, np.int32)
    select.sample(launch, at(state))
    if bracket:
        state[..., 1:3] = bracket
    sweeps = 0
    while (state[..., 6] == 0).any():
        select.sweep(launch, at(state), at(bins), 0 if sweeps else at(request.nonfinite))
        select.shrink_interval(at(state), at(bins), pairs, fp64, keep_all)
        sweeps += 1
        assert sweeps <= 20, "no end of sweeps"
    assert not bins.any()
    select.ties(launch, at(state), at(tie_counts))
    select.locate(at(state), at(tie_counts), at(request.ranges), request.tensors, request.models)
    select.position(launch, at(state))
    items = [pool(CPU).select(p.operands, 65536, list(c), keep_all) for p, c in zip(problems, counts, strict=True)]
    work(pool(CPU), *items)
    for tensor, item in enumerate(items):
        for k, (threshold, tie_end, above, ties) in enumerate(item.result):
            row = state[tensor, k]
            if counts[tensor][k]:
                got = int(row[1]), int(row[5]), int(row[3]), int(row[4])
                assert got == (threshold, tie_end, above, ties), f"{got}, not {(threshold, tie_end, above, ties)}"
    request.check_nonfinite(problems)


@cases("select", dtype=ALL_DTYPES, keep_all=[False, True])
def _(dtype, keep_all):
    problems = []
    for seed, count in enumerate((40, 4099)):
        base, tensors = family(dtype, 3, count, seed=seed)
        problems.append(Problem(tensors, base))
    check_select(*problems, counts=[[1, 7, 40], [2000, 0, 4099]], keep_all=keep_all)


@cases("select among few values", counts=[(1, 9000), (39_999, 20_001), (16_000, 30_000)])
def _(counts):
    values = (family("bf16", 1, 40_000)[0].float() * 100).round()
    other = values.flip(0).contiguous()
    check_select(Problem([values, other]), counts=[counts], split=CHUNK)


@cases("select, not finite", policy=[0, 1, 2])
def _(policy):
    base, tensors = poisoned("bf16", 2, 18_000)
    check_select(Problem(tensors, base, policy=policy), counts=[[3, 9000]])
    check_select(Problem(tensors, base, policy=policy), counts=[[0, 18_000]])


@case
def select_of_zeros():
    zero = torch.zeros(5000)
    zero[4000:] = -0.0
    check_select(Problem([zero]), counts=[[77]])
    check_select(Problem([torch.ones(5000)]), counts=[[77]])


def misleading():
    """Values of which a sample says little."""
    count = 80_000
    rare = torch.rand(count, generator=torch.Generator().manual_seed(1)) * 1e-3
    rare[9000:9300] = torch.linspace(5, 6, 300)
    steps = torch.arange(count, dtype=torch.float32) // 4096
    spread = torch.randn(count, generator=torch.Generator().manual_seed(2))
    return [rare, steps, spread]


@cases("select from many", counts=[(300, 1000, 40_000), (301, 79_999, 80_000)])
def _(counts):
    check_select(Problem(misleading()), counts=[counts])


@cases("select, missed by the sample", bracket=[(0, 0), (0x3F800000, 0x3F800010), (0x7F800000, 0x7FFFFFFF)])
def _(bracket):
    _, tensors = family("fp32", 2, 5000, sigma=1.0)
    check_select(Problem(tensors), counts=[[1, 3000]], bracket=bracket)


if __name__ == "__main__":
    run_cases()
