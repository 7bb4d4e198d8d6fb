"""The `moments` kernel: every field against exact sums and counts, and its sums to the bit in the documented order."""

import math

import bit_oracles
import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_helpers import ALL_DTYPES, DTYPES, ISAS, family, operands, pool, work
from warpmerge import _core

FIELDS = ("sum_abs", "sum_sq", "kept_abs", "min", "max", "nonzero", "kept")
# Sums of float32 terms: 16 rows, 8 levels of lanes, then float64.
SUM_ERROR = {np.float32: 24 * 2.0**-24, np.float64: 40 * 2.0**-53}
KEY = 0xFEDCBA9876543210
SIZES = [1, 255, 256, 511, 512, 4095, 4096, 4097, 20_011]  # around a lane row, a stage, a block; many blocks


def moments(tensors, keep, *, base=None, isa=ISAS[0], threads=2, tile=4096, policy=1, **options):
    run = pool(isa, threads)
    item = run.moments(operands(tensors, base, policy), tile, keep, **options)
    work(run, item)
    return [dict(zip(FIELDS, row, strict=True)) for row in item.result], item


def rules(d):
    """Keep rules of the native module with their masks: some above a threshold, some of its ties, drawn, all, none."""
    limit = np.sort(np.abs(d))[d.size // 2]
    threshold = int(limit.view(np.uint64 if d.itemsize == 8 else np.uint32))
    end = d.size // 2
    above = (np.abs(d) > limit) | ((np.abs(d) == limit) & (np.arange(d.size) < end))
    return [
        (_core.Mask(threshold, end), above),
        (_core.Mask.drawn(KEY, 20000), bit_oracles.lanes(KEY, d.size) < 20000),
        (_core.Mask(), np.ones(d.size, bool)),
        (_core.Mask(2**63), np.zeros(d.size, bool)),
    ]


@pytest.mark.parametrize("on_deltas", [False, True])
@pytest.mark.parametrize("dtype", ALL_DTYPES)
def test_every_field(dtype, on_deltas):
    base, tensors = family(dtype, 4, 20_011)
    base = base if on_deltas else None
    kind = oracles.compute_type([*tensors, *([base] if on_deltas else [])])
    d = oracles.deltas(tensors, base) if on_deltas else [oracles.exact(t).astype(kind) for t in tensors]
    chosen = [rules(v)[k] for k, v in enumerate(d)]
    for isa in ISAS:
        rows, item = moments(tensors, [keep for keep, _ in chosen], base=base, isa=isa)
        assert list(item.nonfinite) == [0] * 5
        for row, v, (_, mask) in zip(rows, d, chosen, strict=True):
            assert row["nonzero"] == np.count_nonzero(v)
            assert row["kept"] == np.count_nonzero(v[mask])
            assert (row["min"], row["max"]) == (float(v.min()), float(v.max()))
            for field, terms in {"sum_abs": np.abs(v), "sum_sq": v * v, "kept_abs": np.abs(v[mask])}.items():
                assert row[field] == pytest.approx(math.fsum(terms), rel=SUM_ERROR[kind], abs=0), field


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("dtype", ["fp32", "fp64"])
def test_sums_follow_the_documented_order(dtype, count):
    values = family(dtype, 1, count)[0] * 50
    v = values.numpy()
    for keep, mask in rules(v):
        wanted = [bit_oracles.fixed_sum(t) for t in (np.abs(v), v * v, np.where(mask, np.abs(v), v.dtype.type(0)))]
        for isa in ISAS:
            row = moments([values], [keep], isa=isa)[0][0]
            assert [row["sum_abs"], row["sum_sq"], row["kept_abs"]] == wanted, isa


@pytest.mark.parametrize("dtype", DTYPES)
def test_tiles_and_threads(dtype):
    base, tensors = family(dtype, 3, 20_011)
    keep = [_core.Mask.drawn(KEY + k, 30000) for k in range(3)]
    wanted = moments(tensors, keep, base=base, tile=131072, threads=1)[0]
    for tile in (512, 4096, 8192):
        for threads in (1, 2):
            assert moments(tensors, keep, base=base, tile=tile, threads=threads)[0] == wanted


def test_l1_alone():
    """The cheap form measures what rescaling needs, with the same bits."""
    base, tensors = family("bf16", 3, 9001)
    keep = [_core.Mask.drawn(KEY + k, 30000) for k in range(3)]
    for isa in ISAS:
        whole, _ = moments(tensors, keep, base=base, isa=isa)
        cheap, _ = moments(tensors, keep, base=base, isa=isa, only_l1=True)
        for one, other in zip(cheap, whole, strict=True):
            assert (one["sum_abs"], one["kept_abs"]) == (other["sum_abs"], other["kept_abs"])


def test_nothing_to_measure():
    assert moments([torch.empty(0)], [_core.Mask()])[0] == [dict.fromkeys(FIELDS, 0)]


@pytest.mark.parametrize("value", [3.0, -3.0, 0.0, -0.0, 1e-45, -1e-45])
def test_extremes_of_one_value(value):
    """Padding to a whole stage must not look like zeros."""
    for isa in ISAS:
        row = moments([torch.full((9,), value)], [_core.Mask()], isa=isa)[0][0]
        assert row["min"] == row["max"] == float(np.float32(value))
        assert (
            math.copysign(1, row["min"])
            == math.copysign(1, row["max"])
            == (1 if value == 0 else math.copysign(1, value))
        )
        assert row["nonzero"] == row["kept"] == (9 if value else 0)


@pytest.mark.parametrize("policy", [1, 2])
def test_values_that_are_not_finite(policy):
    base, (tensor,) = family("fp32", 1, 5000)
    tensor[[3, 4096]] = torch.tensor([float("inf"), -float("inf")])
    for isa in ISAS:
        rows, item = moments([tensor], [_core.Mask()], base=base, isa=isa, policy=policy)
        assert list(item.nonfinite) == [2, 0]
        settled = torch.where(tensor.isfinite(), tensor, base)
        assert rows == moments([settled], [_core.Mask()], base=base, isa=isa)[0], "sums are over the finite elements"


@given(
    values=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=600),
    cut=st.integers(1, 65535),
    key=st.integers(0, 2**64 - 1),
    isa=st.sampled_from(ISAS),
)
@settings(deadline=None, max_examples=150)
def test_counts_and_extremes(values, cut, key, isa):
    tensor = torch.tensor(values, dtype=torch.float32)
    mask = bit_oracles.lanes(key, len(values)) < cut
    row = moments([tensor], [_core.Mask.drawn(key, cut)], isa=isa)[0][0]
    v = tensor.numpy()
    assert (row["nonzero"], row["kept"]) == (np.count_nonzero(v), np.count_nonzero(v[mask]))
    assert (row["min"], row["max"]) == (v.min(), v.max())
    assert row["kept_abs"] <= row["sum_abs"] or row["sum_abs"] == math.inf
