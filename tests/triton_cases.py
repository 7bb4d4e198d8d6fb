"""Runs the Triton kernels in the interpreter against the CPU's, bit for bit.

A program of its own, because TRITON_INTERPRET must be set before triton is imported: see test_triton_kernels.py.
Prints one line per failure, and last the number of cases.
"""

import itertools
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))

from kernel_helpers import (
    ALL_DTYPES,
    DTYPES,
    ISAS,
    assert_same_bits,
    family,
    operands,
    output,
    pool,
    signed,
    unaligned,
    weights,
    work,
)
from triton_helpers import at, awkward, case, cases, code, poisoned, run_cases, same
from warpmerge import _core
from warpmerge.device.tables import CHUNK, Kind, Segment, Table, blocks_of, is_aligned, keep_rows
from warpmerge.ops import KEEP_ALL, KEEP_NONE, NO_TIE_END, KeepAbove, KeepDrawn
from warpmerge.triton_kernels import consensus, gram, moments, reduce, select, weighted_sum

CPU = ISAS[0]


# --- launches -------------------------------------------------------------------------------------------------------


class Problem:
    """One tensor: inputs, perhaps a base, outputs; and the rules and numbers that go with it."""

    def __init__(self, tensors, base=None, *, policy=1, outputs=0, out=None, numbers=None, keep=None):
        self.tensors, self.base, self.policy, self.numbers, self.keep = tensors, base, policy, numbers, keep
        first = base if base is not None else tensors[0]
        self.count = first.numel()
        self.outputs = [torch.full((self.count,), 123.0, dtype=out or first.dtype) for _ in range(outputs)]

    @property
    def nonfinite(self):
        return [0 if t is None else int((~torch.isfinite(t)).sum()) for t in [*self.tensors, self.base]]

    @property
    def operands(self):
        return operands(self.tensors, self.base, self.policy)


def address(tensor, first):
    return tensor.data_ptr() + first * tensor.element_size()


class Request:
    """The launch table of some problems alike, each a slot; `split`: elements after which a tensor is cut in two."""

    def __init__(self, *problems, split=None):
        head = problems[0]
        self.problems, self.models = problems, len(head.tensors)
        everything = [t for p in problems for t in [*p.tensors, *p.outputs, *([] if p.base is None else [p.base])]]
        kind = Kind(
            inputs=tuple(code(t) for t in head.tensors),
            base=-1 if head.base is None else code(head.base),
            out=code(head.outputs[0]) if head.outputs else 0,
            outputs=len(head.outputs),
            wide=any(t.dtype == torch.float64 for t in [*head.tensors, *([] if head.base is None else [head.base])]),
            policy=head.policy,
            aligned=is_aligned(*(t.data_ptr() for t in everything)),
        )
        segments, numbers, keeps, self.blocks, ranges = [], [], [], 0, []
        for slot, p in enumerate(problems):
            blocks = blocks_of(p.count)
            ranges.append((self.blocks, blocks))
            cuts = [0, split, p.count] if split and split < p.count else [0, p.count]
            for first, end in itertools.pairwise(cuts):
                segments.append(
                    Segment(
                        end - first, first, slot, self.blocks + first // 4096, p.count,
                        0 if p.base is None else address(p.base, first),
                        tuple(address(t, first) for t in p.tensors), tuple(address(t, first) for t in p.outputs),
                    )
                )  # fmt: skip
                if p.numbers is not None:
                    numbers.append(p.numbers)
                if p.keep is not None:
                    keeps.append(keep_rows(p.keep))
            self.blocks += blocks
        table = Table(
            kind, segments, np.array(numbers, np.float64) if numbers else None, np.array(keeps) if keeps else None
        )
        self._memory = [np.zeros(table.nbytes + 16, np.uint8)]
        start = -self._memory[0].ctypes.data % 16
        memory = self._memory[0][start:]
        self.launch = table.write(memory[: table.nbytes], memory.ctypes.data)
        self.slots = len(problems)
        self.ranges = np.array(ranges, np.int64)
        self.nonfinite = np.zeros((self.slots, self.models + 1), np.int64)

    def reduce(self, partials, columns, are_moments):
        result = np.zeros((self.slots, columns), np.float64)
        reduce.launch(at(partials), at(self.ranges), self.slots, columns, are_moments, at(result))
        return result

    def check_nonfinite(self, items):
        """`items` have what is right: those of the CPU, or the problems themselves."""
        wanted = [list(i.nonfinite) for i in items]
        assert self.nonfinite.tolist() == wanted, f"counted {self.nonfinite.tolist()}, not {wanted}"


def expect(make, problems):
    items = [make(p) for p in problems]
    work(pool(CPU), *items)
    return items


# --- combine --------------------------------------------------------------------------------------------------------


def check_weighted_sum(*problems, agree=False, split=None):
    request = Request(*problems, split=split)
    weighted_sum.launch(request.launch, agree, at(request.nonfinite))
    wanted = [[torch.full_like(o, 7.0) for o in p.outputs] for p in problems]
    items = [
        pool(CPU).weighted_sum(p.operands, 65536, list(p.numbers), agree, [output(o) for o in outs])
        for p, outs in zip(problems, wanted, strict=True)
    ]
    work(pool(CPU), *items)
    for p, outs in zip(problems, wanted, strict=True):
        for got, want in zip(p.outputs, outs, strict=True):
            assert_same_bits(got, want)
    request.check_nonfinite(items)


def check_consensus(*problems, elect, split=None):
    request = Request(*problems, split=split)
    consensus.launch(request.launch, elect, at(request.nonfinite))
    wanted = [torch.full_like(p.outputs[0], 7.0) for p in problems]
    items = []
    for p, out in zip(problems, wanted, strict=True):
        k = len(p.tensors)
        value, ballot, divisor = (list(p.numbers[i * k : (i + 1) * k]) for i in range(3))
        items.append(
            pool(CPU).consensus(
                p.operands, 65536, value, ballot, divisor, p.numbers[3 * k], elect, native(p.keep), output(out)
            )
        )
    work(pool(CPU), *items)
    for p, want in zip(problems, wanted, strict=True):
        assert_same_bits(p.outputs[0], want)
    request.check_nonfinite(items)


def native(keep):
    return [
        _core.Keep.drawn(k.key, k.cut) if isinstance(k, KeepDrawn) else _core.Keep(k.threshold, k.tie_end) for k in keep
    ]


def coefficients(models, *, lambda_=0.7, ballot=signed):
    return [*weights(models), *ballot(models), *([1.0] * models), lambda_]


def rules(models, wide=False):
    """A mixture: thresholds with and without ties, random, all, none."""
    one = 0x3F50624DD2F1A9FC if wide else 0x3B03126F  # of 0.001 or 0.002
    kinds = [
        KeepAbove(one),
        KeepDrawn(0x946207DDBE679413, 32768),
        KeepAbove(0, 2999),
        KEEP_ALL,
        KEEP_NONE,
        KeepDrawn(3, 1),
        KeepAbove(one, 0),
        KeepDrawn(2**63 + 12345, 65535),
        KeepAbove(one - 7, 16385),
    ]
    return kinds[:models]


@cases("weighted_sum", dtype=ALL_DTYPES, relative=[False, True], models=[3])
@cases("weighted_sum", dtype=["bf16", "fp32", "mixed64"], relative=[False, True], models=[1, 2, 5, 9])
def _(dtype, relative, models):
    problems = []
    for seed, count in enumerate((1, 16385, 7)):
        base, tensors = family(dtype, models, count, seed=seed)
        problems.append(Problem(tensors, base if relative else None, outputs=1, numbers=signed(models)))
    check_weighted_sum(*problems)


@cases("weighted_sum to", dtype=["bf16", "fp16", "fp32", "fp64"], out=list(DTYPES))
def _(dtype, out):
    base, tensors = family(dtype, 2, 4099)
    check_weighted_sum(Problem(tensors, base, outputs=1, out=DTYPES[out], numbers=[0.4, 0.7]))


@cases("weighted_sum, several outputs", relative=[False, True])
def _(relative):
    base, tensors = family("bf16", 3, 40_000)
    numbers = [*signed(3), *weights(3), 0.0, 1.0, 0.0]
    check_weighted_sum(Problem(tensors, base if relative else None, outputs=3, numbers=numbers), split=CHUNK)


@cases("weighted_sum, agreeing", dtype=["bf16", "fp32", "fp64"])
def _(dtype):
    _, tensors = family(dtype, 3, 4099, sigma=1e-4)
    tensors[0][::3] = tensors[1][::3] = tensors[2][::3]
    tensors[0][:5] = tensors[1][:5] = tensors[2][:5] = torch.tensor([float("nan"), float("inf"), -0.0, 1e-40, -1e-45])
    check_weighted_sum(Problem(tensors, outputs=1, numbers=[1 / 3] * 3), agree=True)
    check_weighted_sum(Problem(tensors[:1], outputs=1, numbers=[0.3]), agree=True)


@cases("every 16-bit pattern", dtype=["bf16", "fp16"], out=["bf16", "fp16", "fp32", "fp64"])
def _(dtype, out):
    every = torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16).view(DTYPES[dtype])
    check_weighted_sum(Problem([every], outputs=1, out=DTYPES[out], numbers=[1.0]))


@cases("rounding", dtype=["fp32", "fp64"], out=list(DTYPES))
def _(dtype, out):
    values = awkward(DTYPES[dtype], 40_000)
    check_weighted_sum(Problem([values], outputs=1, out=DTYPES[out], numbers=[1.0]))


@cases("misaligned", dtype=["bf16", "fp32"])
def _(dtype):
    base, tensors = family(dtype, 3, 20_000)
    base, tensors = unaligned(base), [unaligned(t) for t in tensors]
    numbers, keep = coefficients(3), rules(3)
    check_weighted_sum(Problem(tensors, base, outputs=1, numbers=weights(3)))
    check_consensus(Problem(tensors, base, outputs=1, numbers=numbers, keep=keep), elect=True)


@cases("consensus", dtype=ALL_DTYPES, elect=[False, True], models=[3])
@cases("consensus", dtype=["bf16", "fp64"], elect=[False, True], models=[1, 2, 5, 9])
def _(dtype, elect, models):
    problems = []
    for seed, count in enumerate((7, 16385, 4099)):
        base, tensors = family(dtype, models, count, seed=seed)
        wide = dtype in ("fp64", "mixed64")
        numbers = coefficients(models, ballot=(signed, weights)[seed % 2])
        problems.append(Problem(tensors, base, outputs=1, numbers=numbers, keep=rules(models, wide)))
    check_consensus(*problems, elect=elect)


@case
def ties_end_exactly():
    """Many elements lie on the threshold; the last one kept, and the next, are on either side of tie_end."""
    values = (torch.arange(40_000) % 3).float()
    key = 0x3F800000  # of 1
    keep = [KeepAbove(key, 1), KeepAbove(key, 2), KeepAbove(key, 16384 + 2), KeepAbove(key, 16384 + 3)]
    tensors, base = [values.clone() for _ in keep], torch.zeros(40_000)
    check_consensus(Problem(tensors, base, outputs=1, numbers=coefficients(4), keep=keep), elect=False, split=CHUNK)
    check_moments(Problem(tensors, base, keep=keep), split=CHUNK)


@case
def elements_that_do_not_change_keep_their_bits():
    base = torch.tensor([-0.0, 0.0, 1e-45, -1.0] * 1100)
    tensors = [base.clone(), base.clone()]
    check_weighted_sum(Problem(tensors, base, outputs=1, numbers=[0.5, 0.5]))
    for elect in (False, True):
        numbers, keep = coefficients(2), [KEEP_ALL, KEEP_NONE]
        check_consensus(Problem(tensors, base, outputs=1, numbers=numbers, keep=keep), elect=elect)


@cases("consensus over two segments", elect=[False, True])
def _(elect):
    base, tensors = family("bf16", 3, 40_000)
    keep = [KeepAbove(0x3B03126F, 20_000), KeepDrawn(99, 20_000), KeepAbove(0x3A83126F, 16384)]
    check_consensus(Problem(tensors, base, outputs=1, numbers=coefficients(3), keep=keep), elect=elect, split=CHUNK)


@cases("not finite", dtype=["bf16", "fp16", "fp32", "fp64"], policy=[0, 1, 2])
def _(dtype, policy):
    base, tensors = poisoned(dtype, 3, 18_000)
    keep = rules(3, dtype == "fp64")
    for elect in (False, True):
        numbers = coefficients(3)
        problem = Problem(tensors, base, outputs=1, policy=policy, numbers=numbers, keep=keep)
        check_consensus(problem, elect=elect)
    check_weighted_sum(Problem(tensors, base, outputs=1, policy=policy, numbers=weights(3)))
    if policy < 2:
        check_weighted_sum(Problem(tensors, outputs=1, policy=policy, numbers=weights(3)))


# --- measure --------------------------------------------------------------------------------------------------------


def check_moments(*problems, only_l1=False, split=None):
    request = Request(*problems, split=split)
    columns = request.models * (2 if only_l1 else 7)
    partials = np.full((request.blocks, columns), np.nan)
    moments.launch(request.launch, only_l1, at(partials), at(request.nonfinite))
    got = request.reduce(partials, columns, not only_l1)
    items = expect(lambda p: pool(CPU).moments(p.operands, 65536, native(p.keep), only_l1), problems)
    for slot, item in enumerate(items):
        wanted = [[r[0], r[2]] if only_l1 else r for r in item.result]
        same(got[slot], np.array(wanted, np.float64).reshape(-1))
    request.check_nonfinite(items)


@cases("moments", dtype=ALL_DTYPES, only_l1=[False])
@cases("moments", dtype=["bf16", "mixed64"], only_l1=[True])
def _(dtype, only_l1):
    problems = []
    for seed, count in enumerate((16384, 4099) if dtype != "bf16" else (1, 16385, 7)):
        base, tensors = family(dtype, 3, count, seed=seed)
        problems.append(Problem(tensors, base, keep=rules(3, dtype in ("fp64", "mixed64"))))
    check_moments(*problems, only_l1=only_l1)


@cases("moments", models=[1, 9])
def _(models):
    base, tensors = family("mixed", models, 4096)
    check_moments(Problem(tensors, base, keep=rules(models)))
    check_moments(Problem(tensors, keep=[KEEP_ALL] * models))


@case
def moments_over_two_segments():
    base, tensors = family("bf16", 2, 40_000)
    check_moments(Problem(tensors, base, keep=[KeepDrawn(5, 30_000), KeepAbove(0x3B03126F, 20_000)]), split=CHUNK)


@cases("moments, not finite", dtype=["bf16", "fp64"])
def _(dtype):
    base, tensors = poisoned(dtype, 2, 18_000)
    check_moments(Problem(tensors, base, keep=rules(2, dtype == "fp64")))


@case
def moments_of_zeros():
    zero = torch.zeros(5000)
    check_moments(Problem([zero, -zero], keep=[KEEP_ALL, KEEP_NONE]))


def check_gram(*problems, split=None):
    request = Request(*problems, split=split)
    columns = request.models * (request.models + 1) // 2
    partials = np.full((request.blocks, columns), np.nan)
    gram.launch(request.launch, at(partials), at(request.nonfinite))
    got = request.reduce(partials, columns, False)
    items = expect(lambda p: pool(CPU).gram(p.operands, 65536), problems)
    for slot, item in enumerate(items):
        same(got[slot], np.array(item.result))
    request.check_nonfinite(items)


@cases("gram", dtype=ALL_DTYPES, relative=[False, True])
def _(dtype, relative):
    problems = []
    for seed, count in enumerate((7, 16384, 4099)):
        base, tensors = family(dtype, 3, count, seed=seed)
        problems.append(Problem(tensors, base if relative else None))
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
    for slot, block in enumerate((partials[:3], partials[3 : 3 + rows])):
        level = block.copy()
        while len(level) > 1:
            odd = level[len(level) // 2 * 2 :]
            level = np.concatenate([level[0 : len(level) - len(odd) : 2] + level[1::2], odd])
        wanted[slot] = level[0] if len(level) else 0.0
        if len(block):
            wanted[slot, 3], wanted[slot, 4] = block[:, 3].min(), block[:, 4].max()
    ranges, result = np.array([[0, 3], [3, rows]]), np.full((2, 7), np.nan)
    reduce.launch(at(partials), at(ranges), 2, 7, 1, at(result))
    same(result.reshape(-1), wanted.reshape(-1))


# --- select ---------------------------------------------------------------------------------------------------------


def check_select(*problems, counts, keep_all=False, split=None, bracket=None):
    request = Request(*problems, split=split)
    launch, pairs = request.launch, request.slots * request.models
    wide = launch.wide
    state = np.zeros((request.slots, request.models, 8), np.int64)
    state[..., 0] = counts
    state[..., 2] = 2**63 - 1 if wide else 2**31 - 1
    state[..., 4], state[..., 5] = -1, NO_TIE_END
    state[..., 6] = np.where(state[..., 0] == 0, 2, 0)
    bins = np.zeros((request.slots, request.models, 2050), np.int64)
    tie_counts = np.full((request.blocks, request.models), -1, np.int32)
    select.sample(launch, at(state))
    if bracket:
        state[..., 1:3] = bracket
    sweeps = 0
    while (state[..., 6] == 0).any():
        select.sweep(launch, at(state), at(bins), 0 if sweeps else at(request.nonfinite))
        select.narrow(at(state), at(bins), pairs, wide, keep_all)
        sweeps += 1
        assert sweeps <= 20, "no end of sweeps"
    assert not bins.any()
    select.ties(launch, at(state), at(tie_counts))
    select.locate(at(state), at(tie_counts), at(request.ranges), request.slots, request.models)
    select.position(launch, at(state))
    items = [pool(CPU).select(p.operands, 65536, list(c), keep_all) for p, c in zip(problems, counts, strict=True)]
    work(pool(CPU), *items)
    for slot, item in enumerate(items):
        for k, (threshold, tie_end, above, ties) in enumerate(item.result):
            row = state[slot, k]
            if counts[slot][k]:
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
