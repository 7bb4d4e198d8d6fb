"""Drops by rank: how often elements of each rank stay, what the draws depend on, and DELLA beside its kin."""

import numpy as np
import pytest
import torch
import warpmerge as wm
from kernel_helpers import assert_same_bits, family, weights
from method_cases import SHAPE
from method_table import DRAWN
from odd_inputs import tensor


def kept(shape, density, epsilon, *, models=1, seed=0, name="w"):
    """Masks of what stays of increasing magnitudes in each row, of several models."""
    columns = shape[-1]
    d = torch.arange(1.0, columns + 1).expand(shape).clone()
    options = {"density": density, "epsilon": epsilon, "rescale": False, "seed": seed, "name": name}
    base = torch.zeros(shape)
    zero = [0.0] * models
    one = [[*zero[:k], 1.0, *zero[k + 1 :]] for k in range(models)]
    return [wm.merge_tensors([d] * models, "della_linear", base=base, weight=w, **options) != 0 for w in one]


def test_keep_rates_follow_the_rank():
    rows, columns, density, epsilon = 40_000, 9, 0.4, 0.3
    (mask,) = kept((rows, columns), density, epsilon)
    wanted = density - epsilon + 2 * epsilon * np.arange(columns) / (columns - 1)
    error = np.abs(mask.double().mean(0).numpy() - wanted)
    assert (error < 5 * np.sqrt(wanted * (1 - wanted) / rows)).all()


def test_drops_are_independent_of_each_other():
    shape, q = (5_000, 8), 0.5
    first, second = kept(shape, q, 0.0, models=2)
    (seeded,) = kept(shape, q, 0.0, seed=1)
    (renamed,) = kept(shape, q, 0.0, name="v")
    flat = first.flatten()
    for a, b in [(first, second), (first, seeded), (first, renamed), (flat[1:], flat[:-1])]:
        both = (a & b).double().mean().item()
        assert abs(both - q * q) < 5 * np.sqrt(q * q * (1 - q * q) / a.numel())
    assert torch.equal(first, kept(shape, q, 0.0)[0])


def test_inverse_probabilities_are_unbiased():
    """The mean of many merges is the delta, for small elements and large ones."""
    d = torch.arange(1.0, 10).expand(40_000, 9).clone()
    options = {"weight": 1, "density": 0.4, "epsilon": 0.3, "rescale": "inverse_probability", "name": "w", "seed": 3}
    got = wm.merge_tensors([d], "della_linear", base=torch.zeros_like(d), **options).double()
    q = 0.1 + 0.6 * torch.arange(9, dtype=torch.float64) / 8
    assert ((got.mean(0) / d[0] - 1).abs() < 5 * ((1 - q) / q / 40_000).sqrt()).all()


def test_equal_magnitudes_rank_by_their_place():
    """Among zeros and equal elements the first is lower; -0 is a 0, and the sign does not count."""
    d = tensor([2, -2, 0, -0.0, 2, 1]).expand(60_000, 6).clone()
    options = {"weight": 1, "density": 0.5, "epsilon": 0.45, "rescale": False, "name": "w"}
    got = wm.merge_tensors([d], "della_linear", base=torch.zeros_like(d), **options) != 0
    rates = got.double().mean(0).tolist()
    rank = [3, 4, None, None, 5, 2]
    for rate, r in zip(rates, rank, strict=True):
        assert rate == pytest.approx(0 if r is None else 0.05 + 0.9 * r / 5, abs=0.012)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(("by_rank", "at_random"), [("della", "dare_ties"), ("della_linear", "dare_linear")])
def test_without_a_window_della_is_dare(by_rank, at_random, normalize):
    base, tensors = family("bf16", 3, SHAPE)
    options = {"weight": weights(3), "density": [0.5, 0.25, 0.75], "normalize": normalize, **DRAWN}
    got = wm.merge_tensors(tensors, by_rank, base=base, epsilon=0, **options)
    assert_same_bits(got, wm.merge_tensors(tensors, at_random, base=base, **options))


def test_a_density_of_1_drops_nothing():
    base, tensors = family("fp32", 3, SHAPE)
    options = {"base": base, "weight": weights(3)}
    dense = wm.merge_tensors(tensors, "della", **options)
    assert_same_bits(dense, wm.merge_tensors(tensors, "ties", **options))
    linear = wm.merge_tensors(tensors, "della_linear", **options)
    assert_same_bits(linear, wm.merge_tensors(tensors, "task_arithmetic", **options))
