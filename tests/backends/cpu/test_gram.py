"""The `gram` kernel: norms and distances, their order to the bit, and no cancellation between near-identical models."""

import itertools
import math

import bit_oracles
import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_helpers import ALL_DTYPES, ISAS, family, operands, pool, work
from warpmerge.requests import GramResult

# Relative error of a sum: 16 rows and 8 levels of lanes in the compute type; then float64. Terms are not negative.
ERROR = {np.float32: 26 * 2.0**-24, np.float64: 40 * 2.0**-53}


def gram(tensors, *, base=None, isa=ISAS[0], threads=2, tile=4096, policy=1):
    item = pool(isa, threads).gram(operands(tensors, base, policy), tile)
    work(pool(isa, threads), item)
    return item.result, item


def vectors(tensors, base):
    kind = oracles.compute_type([*tensors, *([base] if base is not None else [])])
    return oracles.deltas(tensors, base) if base is not None else [oracles.exact(t).astype(kind) for t in tensors]


@pytest.mark.parametrize("on_deltas", [False, True])
@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize("models", [1, 2, 3, 9])
def test_norms_and_distances(models, dtype, on_deltas):
    base, tensors = family(dtype, models, 9001)
    base = base if on_deltas else None
    x = vectors(tensors, base)
    pairs = list(itertools.combinations(range(models), 2))
    wanted = [math.fsum(v.astype(float) ** 2) for v in x]
    wanted += [math.fsum((x[i].astype(float) - x[k].astype(float)) ** 2) for i, k in pairs]
    for isa in ISAS:
        got, item = gram(tensors, base=base, isa=isa)
        assert got == pytest.approx(wanted, rel=2 * ERROR[x[0].dtype.type], abs=0)
        assert list(item.nonfinite) == [0] * (models + 2)


@pytest.mark.parametrize("count", [1, 255, 256, 511, 512, 4095, 4096, 4097, 20_011])  # lanes, stages, blocks
@pytest.mark.parametrize("dtype", ["fp32", "fp64"])
def test_sums_follow_the_documented_order(dtype, count):
    _, tensors = family(dtype, 3, count)
    x = [v.astype(np.float64) for v in vectors(tensors, None)]
    wanted = [bit_oracles.fixed_sum(v * v) for v in x]
    wanted += [bit_oracles.fixed_sum((x[i] - x[k]) * (x[i] - x[k])) for i, k in ((0, 1), (0, 2), (1, 2))]
    for isa in ISAS:
        assert gram(tensors, isa=isa)[0] == wanted, isa


def test_near_identical_vectors():
    """One float32 ulp apart: a distance derived from dot products would be noise, here 100 times too large and more."""
    a = family("fp32", 1, 20_011)[0]
    step = torch.randint(-1, 2, a.shape, generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    b = (a.view(torch.int32) + step).view(torch.float32)
    exactly = math.fsum((a.double() - b.double()).numpy() ** 2)
    norm_a, norm_b, distance = gram([a, b])[0]
    assert distance == pytest.approx(exactly, rel=ERROR[np.float32])
    by_products = norm_a + norm_b - 2 * float((a * b).sum())
    assert abs(by_products - exactly) > 100 * exactly


def test_a_constant_shift_of_large_vectors():
    """Norms of 1e3, differences of 2^-10: exact in float32, so the distance is too."""
    a = torch.randint(1000, 2000, (4096,), generator=torch.Generator().manual_seed(0)).float()
    _, _, distance = gram([a, a + 2.0**-10])[0]
    assert distance == 4096 * 2.0**-20


def test_the_same_vector_is_at_distance_zero():
    _, (a, b) = family("fp16", 2, 4099)
    result = GramResult.unpack(gram([a, b, a])[0], 3)
    assert result.distances_sq[0][2] == result.distances_sq[2][0] == 0
    assert result.distances_sq[0][1] == result.distances_sq[2][1] > 0
    assert result.norms_sq[0] == result.norms_sq[2]


def test_nothing_to_measure():
    assert gram([torch.empty(0)] * 3)[0] == [0.0] * 6


def test_table():
    flat = [float(i) for i in range(10)]
    result = GramResult.unpack(flat, 4)
    assert list(result.norms_sq) == flat[:4]
    table = {(0, 1): 4, (0, 2): 5, (0, 3): 6, (1, 2): 7, (1, 3): 8, (2, 3): 9}
    for i, k in itertools.product(range(4), repeat=2):
        assert result.distances_sq[i][k] == (0 if i == k else table[min(i, k), max(i, k)])


@pytest.mark.parametrize("dtype", ["bf16", "fp32", "fp64"])
def test_tiles_and_threads(dtype):
    base, tensors = family(dtype, 3, 20_011)
    wanted = gram(tensors, base=base, tile=131072, threads=1)[0]
    for tile in (512, 4096, 8192):
        for threads in (1, 2):
            assert gram(tensors, base=base, tile=tile, threads=threads)[0] == wanted


def test_values_that_are_not_finite():
    base, tensors = family("fp32", 2, 5000)
    tensors[0][7] = float("nan")
    tensors[1][4999] = float("inf")
    settled = [torch.where(t.isfinite(), t, base) for t in tensors]
    for isa, policy in itertools.product(ISAS, (1, 2)):
        got, item = gram(tensors, base=base, isa=isa, policy=policy)
        assert list(item.nonfinite) == [1, 1, 0, 0]
        assert got == gram(settled, base=base, isa=isa)[0], "sums are over the finite elements"


numbers = st.floats(-1e6, 1e6, width=32)


@given(rows=st.lists(st.tuples(numbers, numbers, numbers), min_size=1, max_size=300), isa=st.sampled_from(ISAS))
@settings(deadline=None, max_examples=100)
def test_geometry(rows, isa):
    """Symmetric in the models, and a triangle inequality that rounding cannot hurt much."""
    a, b, c = (t.contiguous() for t in torch.tensor(rows, dtype=torch.float32).unbind(1))
    norm_a, norm_b, norm_c, ab, ac, bc = gram([a, b, c], isa=isa)[0]
    assert gram([c, b, a], isa=isa)[0] == [norm_c, norm_b, norm_a, bc, ac, ab]
    assert math.sqrt(ac) <= (math.sqrt(ab) + math.sqrt(bc)) * (1 + 1e-5) + 1e-18
