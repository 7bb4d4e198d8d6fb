"""Every method with its options against the oracles, within the accuracy that is promised (oracles.TOLERANCES)."""

import math

import numpy as np
import oracles
import pytest
import torch
import warpmerge as wm
from kernel_helpers import ALL_DTYPES, DTYPES, bits, densities, family, signed, weights
from oracles import assert_accurate

SHAPE = (61, 83)  # a block of the reduction order and a rest, no multiple of 8
MODELS = (1, 2, 3, 5, 9)  # up to 4 are unrolled in the kernels
NAME, SEED = "model.layers.0.mlp.up_proj.weight", 7

# Near-zero votes: with bf16's few distinct deltas a handful of elements; none of the 5063 in most cases.
MOST_UNSURE = 0.002

LINEAR = {
    "linear": lambda k: {"weight": weights(k)},
    "linear-uniform": lambda k: {"weight": 1},
    "linear-sum": lambda k: {"weight": weights(k), "normalize": False},
    "linear-negative": lambda k: {"weight": signed(k)},
    "linear-sum-negative": lambda k: {"weight": signed(k), "normalize": False},
}
RELATIVE = {
    "task_arithmetic": lambda k: {"weight": weights(k)},
    "task_arithmetic-negative": lambda k: {"weight": signed(k), "lambda_": 0.7},
    "task_arithmetic-normalize": lambda k: {"weight": weights(k), "normalize": True, "lambda_": -1.5},
    "task_arithmetic-cancelling": lambda k: {"weight": [1.0, -1.0, 1e-9][:k], "normalize": True},
    "task_arithmetic-zero": lambda k: {"weight": 0.0, "normalize": True, "rescale": True, "int8_mask": True},
    "ties": lambda k: {"weight": weights(k), "density": 0.5},
    "ties-dense": lambda k: {"weight": weights(k)},
    "ties-nothing": lambda k: {"weight": weights(k), "density": 0.0},
    "ties-mixed": lambda k: {"weight": weights(k), "density": densities(k), "lambda_": 0.7},
    "ties-sparse-sum": lambda k: {"weight": signed(k), "density": 0.1, "normalize": False},
    "ties-unweighted": lambda k: {"weight": weights(k), "density": 0.57, "elect": "unweighted"},
    "ties-unweighted-negative": lambda k: {"weight": signed(k), "elect": "unweighted", "divisor": "none"},
    "ties-paper": lambda k: {
        "weight": 1,
        "density": 0.2,
        "elect": "unweighted",
        "divisor": "count",
        "ties": "keep_all",
    },
    "ties-keep_all": lambda k: {"weight": weights(k), "density": densities(k), "ties": "keep_all"},
    "ties-count": lambda k: {"weight": signed(k), "density": 0.8, "divisor": "count", "int8_mask": True},
    "ties-weights": lambda k: {"weight": weights(k), "density": 0.3, "normalize": False, "divisor": "weights"},
    "ties-l1": lambda k: {"weight": weights(k), "density": densities(k), "rescale": True},
    "ties-inverse": lambda k: {"weight": weights(k), "density": densities(k), "rescale": "inverse_density"},
    "dare_linear": lambda k: {"weight": weights(k), "density": 0.3},
    "dare_linear-negative": lambda k: {"weight": signed(k), "density": 0.9, "lambda_": 1.3},
    "dare_linear-dense": lambda k: {"weight": weights(k), "density": 1.0},
    "dare_linear-nothing": lambda k: {"weight": weights(k), "density": 0.0},
    "dare_linear-mixed": lambda k: {"weight": weights(k), "density": densities(k), "normalize": True},
    "dare_linear-paper": lambda k: {"weight": weights(k), "density": densities(k), "rescale": "inverse_density"},
    "dare_linear-count": lambda k: {"weight": signed(k), "density": 0.5, "rescale": False, "divisor": "count"},
    "dare_linear-rare": lambda k: {"weight": 1, "density": 1e-6, "rescale": False},  # at least one in 65536
    "dare_ties": lambda k: {"weight": weights(k), "density": 0.6},
    "dare_ties-negative": lambda k: {"weight": signed(k), "density": 0.3, "lambda_": 0.5},
    "dare_ties-mixed": lambda k: {"weight": weights(k), "density": densities(k), "normalize": True},
    "dare_ties-unweighted": lambda k: {"weight": signed(k), "density": 0.7, "elect": "unweighted"},
    "dare_ties-count": lambda k: {"weight": weights(k), "density": 0.8, "rescale": False, "divisor": "count"},
    "dare_ties-paper": lambda k: {"weight": 1, "density": densities(k), "rescale": "inverse_density"},
}


def combinations(cases):
    for name in cases:
        for k in MODELS:
            if name.endswith("cancelling") and k not in (2, 3):
                continue
            for dtype in ALL_DTYPES:
                if not (dtype.startswith("mixed") and k in (2, 9)):
                    yield pytest.param(name, k, dtype, id=f"{name}-{k}-{dtype}")


@pytest.mark.parametrize(("case", "models", "dtype"), list(combinations(LINEAR)))
def test_without_base(case, models, dtype):
    parameters = LINEAR[case](models)
    _, tensors = family(dtype, models, SHAPE)
    got = wm.merge_tensors(tensors, "linear", **parameters)
    assert_accurate(got, oracles.linear(tensors, **parameters))


@pytest.mark.parametrize(("case", "models", "dtype"), list(combinations(RELATIVE)))
def test_with_base(case, models, dtype):
    method, parameters = case.split("-")[0], RELATIVE[case](models)
    base, tensors = family(dtype, models, SHAPE)
    drawing = {"name": NAME, "seed": SEED} if method.startswith("dare") else {}
    got = wm.merge_tensors(tensors, method, base=base, **drawing, **parameters)
    expected = oracles.METHODS[method](tensors, base, **drawing, **parameters)
    assert_accurate(got, expected, most_unsure=MOST_UNSURE)


@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize("scale", [0.3, -1.0, 0.0, 1.0])
def test_passthrough_scales(scale, dtype):
    tensor = family(dtype, 1, SHAPE)[1][0]
    got = wm.merge_tensors([tensor], "passthrough", scale=scale)
    assert_accurate(got, oracles.passthrough([tensor], scale=scale))


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32", "fp64"])
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


@pytest.mark.parametrize("method", ["ties", "dare_ties"])
def test_negative_weights_are_refused_where_the_sign_would_cancel(method):
    base, tensors = family("fp32", 2, 8)
    with pytest.raises(wm.UsageError, match="negative weight"):
        wm.merge_tensors(tensors, method, base=base, weight=[1, -1], normalize=True)


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


def test_slerp_takes_two_models():
    _, tensors = family("fp32", 3, 8)
    for wrong in (tensors, tensors[:1]):
        with pytest.raises(wm.UsageError, match="exactly 2"):
            wm.merge_tensors(wrong, "slerp", t=0.5)
