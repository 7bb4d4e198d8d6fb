"""Methods that sum models or deltas, with an election or without: copies, votes, what is kept, and slerp's angles.

What holds for every method is in test_every_method.py.
"""

import math

import numpy as np
import oracles
import pytest
import torch
import warpmerge as wm
from kernel_helpers import DTYPES, bits, family
from method_cases import SHAPE
from oracles import assert_accurate


@pytest.mark.parametrize("dtype", DTYPES)
def test_passthrough_copies(dtype):
    """Bytes, not values: payloads of NaN, infinities, -0 and subnormals all pass."""
    patterns = torch.randint(-(2**15), 2**15, (4 * 4096,), dtype=torch.int16)
    tensor = patterns.view(family(dtype, 1, 1)[0].dtype)
    assert np.array_equal(bits(wm.merge_tensors([tensor], "passthrough")), bits(tensor))


# --- votes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["ties", "dare_ties"])
def test_a_vote_of_zero_elects_plus(method):
    """Deltas 1 and -1 with equal weights: the first wins, wherever it stands; 1, 1 and -2 as well."""
    base = torch.zeros(4)
    tensors = list(torch.tensor([[1.0, -1, 1, -2], [-1, 1, 1, 1], [0, 0, -2, 1]]))
    got = wm.merge_tensors(tensors, method, base=base, weight=1, normalize=True)
    assert got.tolist() == [1, 1, 1, 1]


def test_zeros_neither_vote_nor_count():
    base = torch.zeros(3)
    tensors = list(torch.tensor([[2.0, 0, 0], [0, 0, -3], [4, 0, -1]]))
    assert wm.merge_tensors(tensors, "ties", base=base, weight=1).tolist() == [3, 0, -2]
    assert wm.merge_tensors(tensors, "ties", base=base, weight=[1, 2, 3]).tolist() == [3.5, 0, pytest.approx(-9 / 5)]
    assert wm.merge_tensors(tensors, "ties", base=base, weight=1, divisor="none").tolist() == [6, 0, -4]


def test_weighted_and_unweighted_elections_differ():
    base = torch.zeros(1)
    tensors = [torch.tensor([3.0]), torch.tensor([-2.0])]
    options = {"base": base, "weight": [0.1, 1.0]}
    assert wm.merge_tensors(tensors, "ties", elect="weighted", **options).item() == -2
    assert wm.merge_tensors(tensors, "ties", elect="unweighted", **options).item() == pytest.approx(3)


@pytest.mark.parametrize(("density", "count", "kept"), [(0.57, 100, 56), (0.7, 10, 7), (0.3, 10, 3), (0.01, 5, 1)])
def test_kept_count_is_the_truncated_float64_product(density, count, kept):
    """0.57 * 100 is 56.99999999999999 in float64; at least one element stays."""
    base = torch.zeros(count)
    got = wm.merge_tensors([torch.arange(1.0, count + 1)], "ties", base=base, weight=1, density=density)
    assert int((got != 0).sum()) == kept
    assert torch.equal(got[-kept:], torch.arange(1.0, count + 1)[-kept:])


# --- slerp ----------------------------------------------------------------------------------------------------------

ANGLES = {
    "right": math.pi / 2,
    "acute": 0.7,
    "obtuse": 2.6,
    "just-spherical": math.acos(0.9994),
    "just-straight": math.acos(0.9996),
    "fine-tune": 1e-4,
    "nearly-opposite": math.acos(-0.9994),
    "opposite": math.acos(-0.9999),
}


def pair(angle: float, ratio: float, dtype: torch.dtype, shape=SHAPE) -> list[torch.Tensor]:
    """Two tensors at an angle, the second `ratio` times as long."""
    generator = torch.Generator().manual_seed(3)
    a = torch.randn(shape, generator=generator, dtype=torch.float64)
    b = torch.randn(shape, generator=generator, dtype=torch.float64)
    b = b - (a * b).sum() / (a * a).sum() * a
    b = b / b.norm() * a.norm()
    return [(0.02 * a).to(dtype), (0.02 * ratio * (math.cos(angle) * a + math.sin(angle) * b)).to(dtype)]


# Rounding the inputs to 16 bits may move an angle that is just on one side of the threshold to the other.
PAIRS = [(a, d) for a in ANGLES for d in DTYPES if not (a.startswith("just") and d in ("bf16", "fp16"))]


@pytest.mark.parametrize("ratio", [1.0, 0.01, 7.0])
@pytest.mark.parametrize(("angle", "dtype"), PAIRS)
def test_slerp(angle, dtype, ratio):
    tensors = pair(ANGLES[angle], ratio, DTYPES[dtype])
    for t in (0.0, 0.3, 0.5, 1.0, -0.2, 1.4):
        expected = oracles.slerp(tensors, t=t)
        assert_accurate(wm.merge_tensors(tensors, "slerp", t=t), expected, share=oracles.SPHERICAL)
        with_base = wm.merge_tensors(tensors[1:], "slerp", base=tensors[0], t=t)
        assert_accurate(with_base, expected, share=oracles.SPHERICAL)


@pytest.mark.parametrize("t", [0.0, 0.25, 0.5, 1.0])
def test_slerp_of_a_zero_tensor(t):
    """It has no direction; its cosine with anything counts as 0."""
    a, b = torch.zeros(SHAPE), pair(1.0, 1.0, torch.float32)[1]
    for tensors in ([a, b], [b, a], [a, a]):
        got = wm.merge_tensors(tensors, "slerp", t=t)
        assert_accurate(got, oracles.slerp(tensors, t=t), share=oracles.SPHERICAL)
