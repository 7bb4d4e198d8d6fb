"""Degenerate inputs of the methods that solve on norms and distances, and tensors that no model changes."""

import oracles
import pytest
import torch
import warpmerge as wm
from kernel_helpers import DTYPES, assert_same_bits, family
from oracles import assert_accurate
from test_gram_methods import CASES, expected, merged
from warpmerge.errors import CheckpointError, UsageError


def vector(*values):
    return torch.tensor(values, dtype=torch.float32)


ONE = vector(1, 2, -2, 0.5)
DEGENERATE = {
    "identical": (ONE, ONE, ONE),
    "zero": (ONE * 0, ONE * 0, ONE * 0),
    "one zero": (ONE, ONE * 0, ONE),
    "all but one zero": (ONE * 0, ONE, ONE * 0),
    "parallel": (ONE, 2 * ONE, 3 * ONE),
    "antiparallel": (ONE, -ONE, ONE),
    "cancelling": (ONE, ONE, -2 * ONE),
    "at 120 degrees": (vector(1, 0), vector(-0.5, 0.75**0.5), vector(-0.5, -(0.75**0.5))),
    "one element": (vector(3), vector(-1), vector(2)),
    "no dimension": (torch.tensor(3.0), torch.tensor(-1.0), torch.tensor(2.0)),
    "empty": (torch.empty(0, 3), torch.empty(0, 3), torch.empty(0, 3)),
    "subnormal": (vector(1e-45, 0), vector(3e-45, 1e-44), vector(0, -1e-45)),
    "huge": (vector(3e37, 1), vector(-3e37, 1), vector(1e37, 3e37)),
    "tiny and huge": (vector(1e-45, 0), vector(1e38, 1e38), vector(1, 1)),
}


@pytest.mark.parametrize("kind", DEGENERATE)
@pytest.mark.parametrize("case", CASES)
def test_degenerate(case, kind):
    """No error, no NaN, the same shape; and what the oracle says, unless it is a quotient of roundings."""
    models, given, _ = CASES[case]
    tensors = [DEGENERATE[kind][i % 3].clone() for i in range(models)]
    for base in [torch.zeros_like(tensors[0]), torch.ones_like(tensors[0])] if given else [None]:
        if base is not None and base.any():
            tensors = [t + base for t in tensors]
        got = merged(case, tensors, base)
        assert (got.shape, got.dtype) == (tensors[0].shape, torch.float32)
        assert not got.isnan().any()
        if kind not in ("huge", "tiny and huge"):
            assert_accurate(got, expected(case, tensors, base), share=oracles.SPHERICAL)


def test_antiparallel_models():
    a, b = ONE, -3 * ONE
    straight = 0.25 * a + 0.75 * b
    assert_same_bits(wm.merge_tensors([a, b], "nuslerp", weight=[1, 3]), straight)
    assert_same_bits(wm.merge_tensors([a, b], "multislerp", weight=1), -ONE)
    torch.testing.assert_close(wm.merge_tensors([a, b], "karcher"), 2 * ONE)
    assert_same_bits(wm.merge_tensors([a, -ONE], "model_stock", base=ONE * 0), ONE * 0)
    # Directions that cancel, of which there are more than two.
    assert_same_bits(wm.merge_tensors([a, a, -2 * a], "multislerp", weight=[1, 1, 2]), -0.5 * a)


def test_parallel_models():
    """The direction, as long as the mean norm."""
    tensors = [ONE, 2 * ONE, 6 * ONE]
    for method, parameters in {"multislerp": {"weight": 1}, "karcher": {}}.items():
        torch.testing.assert_close(wm.merge_tensors(tensors, method, **parameters), 3 * ONE)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", [c for c in CASES if "-sum" not in c and "-opposed" not in c])
def test_a_frozen_tensor_keeps_its_bits(case, dtype):
    """Also -0, subnormals, lengths without a direction; and NaN, as in a mask."""
    models = CASES[case][0]
    values = torch.tensor([-0.0, 0.0, 0.1, -6e-8, 3.0, 1e-45, -7.7], dtype=torch.float64)
    nan = torch.tensor([float("nan"), -float("inf"), -0.0, 1.0])
    for frozen in (values, values * 1e-10, values * 0, nan, values[:1], values[:0]):
        frozen = frozen.to(DTYPES[dtype])
        # One model and no base: there is nothing that it could be the same as.
        if not (frozen.isnan().any() and models == 1 and not CASES[case][1]):
            assert_same_bits(merged(case, [frozen.clone() for _ in range(models)], frozen.clone()), frozen)


@pytest.mark.parametrize("method", ["nuslerp", "multislerp"])
def test_nan_counts_as_unchanged(method):
    base, (a, b) = family("fp32", 2, 100)
    a[3], b[5] = float("nan"), float("inf")
    options = {"weight": 1, "nonfinite": "base"}
    got = wm.merge_tensors([a, b], method, base=base, **options)
    a[3], b[5] = base[3], base[5]
    assert_same_bits(got, wm.merge_tensors([a, b], method, base=base, weight=1))
    with pytest.raises(UsageError, match="no base"):
        wm.merge_tensors([a, b], method, **options)


def test_squares_that_overflow():
    tensors = [torch.full((3,), 1e200 * k, dtype=torch.float64) for k in (1, 2, 4)]
    for method in ("krum", "karcher", "geometric_median"):
        with pytest.raises(CheckpointError, match="'w' has elements whose squares overflow"):
            wm.merge_tensors(tensors, method, name="w")
