"""The `select` kernel: the exact k-th largest magnitude and its ties, against a sort."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_helpers import DTYPES, ISAS, bits, family, operands, pool, work

NEVER = 2**63 - 1
COUNT = 20_011  # five blocks and a rest


def keys(d):
    """Magnitudes as unsigned integers, one per element."""
    unsigned = bits(d.contiguous())
    return (unsigned & (2 ** (8 * unsigned.itemsize - 1) - 1)).astype(object if unsigned.itemsize == 8 else np.int64)


def by_sorting(d, count, keep_all=False):
    """(threshold, tie_end, above, ties) as the kernel reports them."""
    k = keys(d)
    threshold = int(np.sort(k)[::-1][count - 1])
    above, ties = int((k > threshold).sum()), np.flatnonzero(k == threshold)
    budget = count - above
    whole = keep_all or threshold == 0 or budget == ties.size
    return threshold, NEVER if whole else int(ties[budget - 1]) + 1, above, ties.size


def select(tensors, counts, *, base=None, keep_all=False, isa=ISAS[0], tile=4096, policy=1, **forced):
    """Result rows and the item."""
    item = pool(isa).select(operands(tensors, base, policy), tile, counts, keep_all, **forced)
    work(pool(isa), item)
    return item.result, item


def kept(d, row):
    """What the combine kernels keep for a result row."""
    threshold, tie_end, *_ = row
    k = keys(d)
    return (k > threshold) | ((k == threshold) & (np.arange(k.size) < tie_end))


@pytest.mark.parametrize("keep_all", [False, True])
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["fp32", "fp64"])
def test_against_a_sort(dtype, isa, keep_all):
    base, tensors = family(dtype, 3, COUNT)
    d = [t - base for t in tensors]
    for counts in ([1, COUNT // 2, COUNT - 1], [COUNT // 10, COUNT // 3, COUNT]):
        rows, item = select(tensors, counts, base=base, isa=isa, keep_all=keep_all)
        assert rows == [by_sorting(v, c, keep_all) for v, c in zip(d, counts, strict=True)]
        assert list(item.nonfinite) == [0] * 5


@pytest.mark.parametrize("dtype", DTYPES)
def test_keys_are_those_of_the_compute_type(dtype):
    values = family(dtype, 1, 1031)[0]
    fp64 = values.to(torch.float64 if dtype == "fp64" else torch.float32)
    assert select([values], [300])[0] == [by_sorting(fp64, 300)]


def test_a_model_that_is_not_asked_is_left_alone():
    """Count 0: another model's density is 0 or 1."""
    _, tensors = family("fp32", 3, COUNT)
    for counts in ([0, 5000, 0], [5000, 0, 100], [0, 0, 1]):
        rows, _ = select(tensors, counts)
        for tensor, count, row in zip(tensors, counts, rows, strict=True):
            assert not count or row == by_sorting(tensor, count)


def misleading():
    """Values on which a sample of places says nothing about the whole."""
    rare = torch.rand(COUNT, generator=torch.Generator().manual_seed(1)) * 1e-3
    rare[9000:9300] = torch.linspace(5, 6, 300)
    steps = torch.arange(COUNT, dtype=torch.float32) // 32
    spread = torch.randn(COUNT, generator=torch.Generator().manual_seed(2))
    few = torch.randint(0, 4, (COUNT,), generator=torch.Generator().manual_seed(3)).float()
    return {"rare": rare, "steps": steps, "spread": spread, "few": few, "equal": torch.ones(COUNT)}


@pytest.mark.parametrize("dtype", ["fp32", "fp64"])
@pytest.mark.parametrize("name", misleading())
def test_tiny_samples_and_buffers_change_nothing(name, dtype):
    """Forced to: 32 samples, room for 16 keys. Then histograms narrow the interval, sweep by sweep."""
    values = misleading()[name].to(DTYPES[dtype])
    most = 0
    for count in (1, 150, 299, 300, 301, COUNT // 2, COUNT - 1, COUNT):
        for isa in ISAS:
            rows, item = select([values], [count], isa=isa, sample=32, capacity=16)
            assert rows == [by_sorting(values, count)], (count, isa)
            most = max(most, item.sweeps)
    if name in ("rare", "spread"):
        assert most > 1, "no case needed a second sweep: the test does not reach the fallback"


def test_models_that_need_different_numbers_of_sweeps():
    cases = misleading()
    tensors = [cases["equal"], cases["spread"], cases["rare"]]
    rows, item = select(tensors, [77, 5000, 150], sample=32, capacity=16, tile=512)
    assert item.sweeps > 1
    assert rows == [by_sorting(t, c) for t, c in zip(tensors, [77, 5000, 150], strict=True)]


def test_nonfinite_elements_are_counted_once():
    """However many sweeps it takes."""
    values = misleading()["spread"]
    values[[3, 5000, 20_000]] = torch.tensor([float("nan"), float("inf"), -float("inf")])
    other = values.clone()
    other[7] = float("nan")
    _, item = select([values, other], [2000, 2000], sample=32, capacity=16)
    assert item.sweeps > 1
    assert list(item.nonfinite) == [3, 4, 0, 0]


def test_nan_is_the_largest():
    values = torch.tensor([1.0, float("nan"), float("inf"), -2.0, -float("nan")])
    for count, expected in ((1, [1]), (2, [1, 4]), (3, [1, 2, 4]), (4, [1, 2, 3, 4])):
        row = select([values], [count])[0][0]
        quiet = torch.where(values.isnan(), torch.tensor(float("nan")).abs(), values)
        assert np.flatnonzero(kept(quiet, row)).tolist() == expected


def test_order_of_the_smallest_numbers():
    """Subnormals are numbers, and -0 is as small as 0."""
    values = torch.tensor([0.0, -0.0, 1e-45, -3e-45, 1.2e-38, 1e-39])
    for count in range(1, 7):
        assert select([values], [count])[0] == [by_sorting(values, count)]


@pytest.mark.parametrize("tile", [512, 4096, 8192, 131072])
@pytest.mark.parametrize("threads", [1, 2])
def test_tiles_and_threads(tile, threads):
    values = (family("bf16", 1, COUNT)[0].float() * 200).round()
    negated = -values
    item = pool(ISAS[0], threads).select(operands([values, negated]), tile, [3000, 9000], False)
    work(pool(ISAS[0], threads), item)
    assert item.result == [by_sorting(values, 3000), by_sorting(values, 9000)]
    assert all(tie_end != NEVER for _, tie_end, _, _ in item.result)


few = st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.0, 1.5, 2.0, -2.0, 1e-45, 3e38]), min_size=1, max_size=700)
any_float = st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=300)


@given(values=few | any_float, share=st.floats(0, 1), isa=st.sampled_from(ISAS), tiny=st.booleans())
@settings(deadline=None, max_examples=300)
def test_keeps_exactly_k(values, share, isa, tiny):
    d = torch.tensor(values, dtype=torch.float32)
    count = max(1, int(share * d.numel()))
    forced = {"sample": 32, "capacity": 1} if tiny and d.numel() > 200 else {}
    row = select([d], [count], isa=isa, **forced)[0][0]
    mask = kept(d, row)
    if row[0] > 0:
        assert mask.sum() == count
        assert not mask.all() or count == d.numel()
        assert keys(d)[mask].min() >= max(keys(d)[~mask], default=0)
    else:  # zeros stay zeros, so all of them are kept
        assert mask.all() and (keys(d) > 0).sum() < count
    assert row == by_sorting(d, count)
