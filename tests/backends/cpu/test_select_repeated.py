"""The `select` kernel where several counts of the same value are asked for, and at the tails, against a sort."""

import numpy as np
import pytest
import torch
from kernel_helpers import DTYPES, ISAS, family, operands, pool, work
from test_select import COUNT, NEVER, by_sorting, keys
from warpmerge.expr.expression import delta, maximum, wrap

LARGE = 140_001  # elements: more than are selected from all their keys at once
RANKS = [1, 2, 299, 300, 301, COUNT // 2, COUNT - 1, COUNT]


def select(tensors, values, counts, *, base=None, isa=ISAS[0], keep_all=False, tile=4096, policy=1, **forced):
    """Result rows and the item."""
    item = pool(isa).select(operands(tensors, base, policy, values), tile, counts, keep_all, **forced)
    work(pool(isa), item)
    return item.result, item


def assert_selected(rows, values, counts, keep_all=False):
    """Rows as a sort has them; a tie end anywhere from behind the last tie that is kept up to the next one."""
    for row, value, count in zip(rows, values, counts, strict=True):
        if not count:
            continue
        threshold, end, above, ties = by_sorting(value, count, keep_all)
        assert (row[0], row[2], row[3]) == (threshold, above, ties), count
        following = np.flatnonzero(keys(value)[end:] == threshold) if end != NEVER else [0]
        assert end <= row[1] <= end + following[0], count


def generator(seed):
    return torch.Generator().manual_seed(seed)


def crafted(count):
    """Values with ties at every rank, hardly any, in the tails, and where nearly all are zero."""
    noise = torch.randn(count, generator=generator(1))
    tails = noise.clone()
    tails[::5000] = 7.5
    tails[1::4000] = -1e-9
    few = torch.randint(0, 4, (count,), generator=generator(2)).float() - 1
    sparse = torch.where(torch.rand(count, generator=generator(3)) < 0.01, noise, 0 * noise)
    return {"noise": noise, "tails": tails, "few": few, "sparse": sparse, "steps": (noise * 8).round(), "zero": 0 * few}


@pytest.mark.parametrize("keep_all", [False, True])
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", crafted(8))
def test_ties_and_tails(name, isa, keep_all):
    """Small and large, every kind of rank of the same value at once, with tie ends of their own."""
    for count in (1, 257, COUNT, LARGE):
        values = crafted(count)[name]
        shares = (0, 1e-4, 0.01, 0.1, 0.5, 0.9, 0.999, 0.9999, 1)
        counts = [max(1, int(share * count)) for share in shares]
        rows, _ = select([values], [delta(0)] * len(counts), counts, isa=isa, keep_all=keep_all)
        assert_selected(rows, [values] * len(counts), counts, keep_all)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["bf16", "fp32", "fp64"])
def test_without_a_formula_too(dtype, isa):
    """Values with a base, in all compute types; each model's counts are in the tails and in the middle."""
    base, tensors = family(dtype, 3, LARGE)
    compute = torch.float64 if dtype == "fp64" else torch.float32
    d = [t.to(compute) - base.to(compute) for t in tensors]
    for counts in ([1, LARGE // 2, LARGE], [20, LARGE // 100, LARGE - 20]):
        item = pool(isa).select(operands(tensors, base, 1), 4096, counts, False)
        work(pool(isa), item)
        assert_selected(item.result, d, counts)
        rows, _ = select(tensors, [delta(k) for k in (0, 1, 2)] * 2, counts * 2, base=base, isa=isa)
        assert_selected(rows, d * 2, counts * 2)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["fp32", "fp64"])
def test_forced_sweeps(dtype, isa):
    """A sample of one run and room for 16 keys: each count of a value goes through histograms of its own."""
    most = 0
    for values in crafted(COUNT).values():
        values = values.to(DTYPES[dtype])
        rows, item = select([values], [delta(0)] * len(RANKS), RANKS, isa=isa, sample=32, capacity=16)
        assert_selected(rows, [values] * len(RANKS), RANKS)
        most = max(most, item.sweeps)
    assert most > 1


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("forced", [{}, {"sample": 32, "capacity": 64}], ids=["usual", "forced"])
@pytest.mark.parametrize("count", [COUNT, LARGE])
def test_repeated_among_different_values(count, forced, isa):
    """Deltas, one of them twice in a row and again later, a computed value twice, constants; some not asked."""
    base, tensors = family("bf16", 2, count)
    d = [t.float() - base.float() for t in tensors]
    larger = maximum(abs(delta(0)), abs(delta(1)))
    values = [delta(1), delta(1), larger, delta(0), wrap(3.0), larger, delta(1), wrap(-2.0), delta(0), delta(1)]
    of = torch.maximum(d[0].abs(), d[1].abs())
    plain = [d[1], d[1], of, d[0], torch.full((count,), 3.0), of, d[1], torch.full((count,), 2.0), d[0], d[1]]
    counts = [0, count // 2, count // 100, 1, count // 3, count, count // 9, 7, 0, count - 1]
    rows, _ = select(tensors, values, counts, base=base, isa=isa, **forced)
    assert_selected(rows, plain, counts)
    ends = {row[1] for row in rows} - {NEVER}
    assert len(ends) > 2, "no two counts end their ties at different places"


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("count", [COUNT, LARGE])
def test_what_is_not_finite_counts_as_zero(count, isa):
    """Of a delta and of a computed value; other values of the same elements stay as they are."""
    values, other = torch.randn(count, generator=generator(4)), torch.randn(count, generator=generator(5))
    values[[3, 5000, 20_000]] = torch.tensor([float("nan"), float("inf"), -float("inf")])
    values[77] = 3e38
    counts = [1, 5, count // 2, count - 2, 1, count // 7, 2, count // 2]
    asked = [delta(0)] * 4 + [delta(1)] * 2 + [delta(0) * 2] * 2
    zeroed, doubled = (torch.where(v.isfinite(), v, 0 * other) for v in (values, values * 2))
    plain = [zeroed] * 4 + [other] * 2 + [doubled] * 2
    rows, item = select([values, other], asked, counts, isa=isa)
    assert_selected(rows, plain, counts)
    assert count == COUNT or list(item.nonfinite) == [3, 0, 0, 0]  # a small tensor is counted when it is combined
