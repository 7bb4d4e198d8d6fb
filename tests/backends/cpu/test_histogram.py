"""Histograms of magnitude keys: counts are exact, whatever the interval."""

import numpy as np
import pytest
import torch
from formula_helpers import KEY, adversarial, carry_out, formula, is_wide, random_values
from kernel_helpers import ALL_DTYPES, CONFIGURATIONS, cpu, family, reference
from warpmerge.expr import expression as f
from warpmerge.requests import Histogram

COUNT = 9001
INF, TOP = 0x7F800000, 0x7FFFFFFF
INTERVALS = [(0, TOP), (0, 2**63 - 1), (1, 0x3F800000), (INF, INF), (0, 0), (0x3D000000, 0x3D00FFFF), (INF + 1, TOP)]
WIDE = [(low << 32, (high << 32) + 2**32 - 1 if high < 2**31 else high) for low, high in INTERVALS]


def compare(request, tensors, base, configurations=CONFIGURATIONS, **options):
    wanted, counts, _ = carry_out(reference(), request, tensors, base, **options)
    for configuration in configurations:
        got, nonfinite, _ = carry_out(cpu(*configuration), request, tensors, base, **options)
        assert nonfinite == counts, configuration
        for one, other in zip(got, wanted, strict=True):
            assert (one.above, one.shift) == (other.above, other.shift), configuration
            bins = np.asarray(one.bins)
            assert bins.dtype == np.int64 and np.array_equal(bins, other.bins), configuration
            assert (one.only is None) == (other.only is None) == (one.shift == 0), configuration
            if one.only is not None:
                occupied = bins > 0
                assert np.array_equal(one.only[occupied], other.only[occupied]), configuration
    return wanted


@pytest.mark.parametrize("nonfinite", ["propagate", "base"])
@pytest.mark.parametrize("dtype", ALL_DTYPES)
def test_deltas(dtype, nonfinite):
    intervals = WIDE if is_wide(dtype) else INTERVALS
    for make in (family, adversarial):
        base, tensors = make(dtype, len(intervals), COUNT)
        for origin in (base, None):
            request = Histogram(tuple(intervals), on_deltas=origin is not None)
            compare(request, tensors, origin, CONFIGURATIONS[-2:], nonfinite=nonfinite)


@pytest.mark.parametrize("dtype", ALL_DTYPES)
def test_values_of_a_formula(dtype):
    base, tensors = adversarial(dtype, 3, COUNT)
    values = formula([*random_values(5, 3, outputs=2), f.delta(0) * f.draw(KEY), f.rank(1)], COUNT)
    intervals = WIDE if is_wide(dtype) else INTERVALS
    compare(Histogram(tuple(intervals[:4]), of=values), tensors, base)


def test_all_in_one_bin():
    """The counters of a bin are added up over threads."""
    tensor = torch.full((300_000,), 0.5)
    key = 0x3F000000
    for interval, bin_ in [((key, key), 0), ((key - 10, key + 10), 10), ((0, key), key >> 14)]:
        [found] = carry_out(cpu("", 2, 512), Histogram((interval,), on_deltas=False), [tensor])[0]
        assert found.above == 0
        assert np.flatnonzero(found.bins).tolist() == [bin_] and found.bins[bin_] == 300_000
        assert found.only is None if found.shift == 0 else found.only[bin_] == key


def test_no_elements():
    [found] = carry_out(cpu(), Histogram(((0, 5),), on_deltas=False), [torch.empty(0)])[0]
    assert (found.above, found.shift, found.bins.any()) == (0, 0, False)
