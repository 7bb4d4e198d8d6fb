"""What must hold exactly for merges as people call them, whatever the numbers."""

import pytest
import torch
import warpmerge as wm
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kernel_helpers import DTYPES, assert_same_bits, densities, family, signed, weights

RELATIVE = ["task_arithmetic", "ties", "dare_linear", "dare_ties"]
BACKENDS = ["cpu", "torch"]
SLOW = settings(deadline=None, max_examples=60)  # each example is several merges

# Numbers that careless arithmetic changes: zeros of both signs, subnormals, the largest and smallest.
STRANGE = [0.0, -0.0, 1e-45, -1e-45, 6e-8, 1.1754942e-38, 3.3e38, -65504.0, 0.1]
numbers = st.sampled_from(STRANGE) | st.floats(width=32, allow_nan=False, allow_infinity=False)
vectors = st.lists(numbers, min_size=1, max_size=33)
share = st.floats(0, 1)
weight = st.floats(0.01, 3)


def tensor(values, dtype="fp32"):
    return torch.tensor(values, dtype=torch.float64).to(DTYPES[dtype])


def options(method, models, density):
    chosen = {"weight": weights(models)}
    return chosen if method == "task_arithmetic" else {**chosen, "density": density}


# --- a tensor that is the same in the base and all models -----------------------------------------------------------


@pytest.mark.parametrize("method", RELATIVE)
@given(values=vectors, dtype=st.sampled_from(list(DTYPES)), models=st.integers(1, 6), density=share, factor=weight)
@SLOW
def test_a_frozen_tensor_keeps_its_bits(method, values, dtype, models, density, factor):
    base = tensor(values, dtype)
    if not base.isfinite().all():
        return
    frozen = [base.clone() for _ in range(models)]
    got = wm.merge_tensors(frozen, method, base=base, lambda_=factor, **options(method, models, density))
    assert_same_bits(got, base)


@given(values=vectors, dtype=st.sampled_from(list(DTYPES)), given_weights=st.lists(weight, min_size=1, max_size=6))
@SLOW
def test_a_mean_of_identical_models_is_the_model(values, dtype, given_weights):
    model = tensor(values, dtype)
    if model.isfinite().all():
        copies = [model.clone() for _ in given_weights]
        assert_same_bits(wm.merge_tensors(copies, "linear", weight=given_weights), model)


@given(values=vectors, dtype=st.sampled_from(list(DTYPES)), t=st.floats(-0.5, 1.5))
@example(values=[1e-10] * 16, dtype="fp32", t=0.5)
@SLOW
def test_slerp_between_identical_models_is_the_model(values, dtype, t):
    """Also where the norm is too small to give a direction, or zero."""
    model = tensor(values, dtype)
    if model.double().abs().max() < 1e18:  # squares beyond float32 are another matter
        assert_same_bits(wm.merge_tensors([model, model.clone()], "slerp", t=t), model)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", [*RELATIVE, "linear", "slerp", "passthrough"])
def test_identical_tensors_with_nan_and_infinities_come_out_unchanged(method, dtype, backend):
    """By default such a tensor is an error, but not if no model changed it (a mask of -inf, say)."""
    model = torch.randint(-(2**15), 2**15, (4 * 100,), dtype=torch.int16).view(DTYPES[dtype])
    model[:2] = torch.tensor([float("nan"), -float("inf")])
    chosen = {"slerp": {"t": 0.3}, "passthrough": {}, "linear": {"weight": [0.4, 0.6]}}.get(method)
    chosen = chosen if chosen is not None else options(method, 2, 0.5)
    models = [model.clone() for _ in range(1 if method == "passthrough" else 2)]
    base = {"base": model.clone()} if method in RELATIVE else {}
    assert_same_bits(wm.merge_tensors(models, method, backend=backend, **base, **chosen), model)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", [*RELATIVE, "linear", "slerp"])
def test_other_nan_is_an_error_that_names_the_model(method, backend):
    base, models = family("bf16", 2, 1031)
    models[1][500] = float("nan")
    models[1][7] = -float("inf")
    chosen = {"slerp": {"t": 0.3}, "linear": {"weight": 1}}.get(method) or options(method, 2, 0.5)
    with pytest.raises(wm.CheckpointError, match=r"'layers\.0'.* 2 of 1,031 in 'model 1'.*nonfinite"):
        extra = {"base": base} if method in RELATIVE else {}
        wm.merge_tensors(models, method, name="layers.0", backend=backend, **extra, **chosen)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("case", ["slerp", "dare_linear", "dare_ties"])
def test_a_propagated_nan_gives_no_wrong_numbers(case, bad):
    """A statistic of the whole tensor may make all of it NaN, but what is finite must be what it would be without."""
    base, models = family("fp32", 2, 1031)
    chosen = {"t": 0.3} if case == "slerp" else {"base": base, "weight": 1, "density": 0.3}
    models[1] = models[1] if case != "slerp" else torch.randn(1031, generator=torch.Generator().manual_seed(0)) * 0.02
    clean = wm.merge_tensors(models, case, **chosen)
    models[0] = models[0].clone()
    models[0][::100] = bad
    got = wm.merge_tensors(models, case, nonfinite="propagate", **chosen)
    finite = got.isfinite()
    assert not finite[::100].all()  # a random drop may take some of them
    torch.testing.assert_close(got[finite], clean[finite], rtol=0.01, atol=1e-4)


# --- parameters at their ends ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", RELATIVE)
@given(values=vectors, models=st.integers(1, 5), density=share)
@SLOW
def test_lambda_zero_gives_the_base(method, values, models, density):
    base = tensor(values).clamp(-1e30, 1e30)  # sums that overflow are infinite, and zero times infinity is NaN
    models = [base.flip(0) / (k + 2) for k in range(models)]
    got = wm.merge_tensors(models, method, base=base, lambda_=0, **options(method, len(models), density))
    assert_same_bits(got, base)


@pytest.mark.parametrize("method", RELATIVE[1:])
def test_density_zero_gives_the_base(method):
    base, models = family("bf16", 3, 1031)
    assert_same_bits(wm.merge_tensors(models, method, base=base, weight=1, density=0), base)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("models", [1, 3, 5])
def test_dare_at_density_one_is_task_arithmetic(models, dtype):
    base, tuned = family(dtype, models, 1031)
    for chosen in ({"weight": signed(models)}, {"weight": 1}):
        wanted = wm.merge_tensors(tuned, "task_arithmetic", base=base, **chosen)
        for rescale in ("l1", "inverse_density", False):
            got = wm.merge_tensors(tuned, "dare_linear", base=base, density=1, rescale=rescale, seed=3, **chosen)
            assert_same_bits(got, wanted)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("models", [1, 3, 5])
def test_density_one_does_not_trim(models, dtype):
    base, tuned = family(dtype, models, 1031)
    got = wm.merge_tensors(tuned, "ties", base=base, weight=weights(models))
    almost = 1 - 1e-12  # int(density * n) is n - 1: the smallest delta of each model goes
    for ties in ("lowest_index", "keep_all"):
        dense = wm.merge_tensors(tuned, "ties", base=base, weight=weights(models), density=1.0, ties=ties)
        assert_same_bits(dense, got)
    trimmed = wm.merge_tensors(tuned, "ties", base=base, weight=weights(models), density=almost)
    assert int((trimmed != got).sum()) <= models
    same = wm.merge_tensors(tuned, "dare_ties", base=base, weight=weights(models), normalize=True)
    assert_same_bits(same, got)


@pytest.mark.parametrize("dtype", DTYPES)
def test_ties_of_one_model_is_task_arithmetic(dtype):
    """Weight and divisor cancel."""
    base, tuned = family(dtype, 1, 1031)
    wanted = wm.merge_tensors(tuned, "task_arithmetic", base=base, weight=1)
    assert_same_bits(wm.merge_tensors(tuned, "ties", base=base, weight=1), wanted)
    assert_same_bits(wm.merge_tensors(tuned, "ties", base=base, weight=0.25), wanted)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sigma", [1e-6, 0.05])  # a straight line, a sphere
def test_slerp_ends_at_the_models(sigma, dtype):
    base, (tuned,) = family(dtype, 1, 1031, sigma=sigma)
    base[:3], tuned[:3] = torch.tensor([0.0, 1e-7, 1.0]), torch.tensor([1.0, 0.0, -1.0])
    assert torch.equal(wm.merge_tensors([base, tuned], "slerp", t=0), base)
    assert torch.equal(wm.merge_tensors([base, tuned], "slerp", t=1), tuned)
    assert torch.equal(wm.merge_tensors([tuned, base], "slerp", base=base, t=0), base)


def test_linear_of_one_model_is_the_model():
    _, (model,) = family("fp32", 1, 1031)
    assert_same_bits(wm.merge_tensors([model], "linear", weight=0.3), model)


# --- symmetries -----------------------------------------------------------------------------------------------------

integers = st.lists(st.lists(st.integers(-20, 20), min_size=4, max_size=4), min_size=1, max_size=40)


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties"])
@given(rows=integers, order=st.permutations(range(4)), density=share)
@SLOW
def test_the_order_of_models_does_not_matter_where_sums_are_exact(method, rows, order, density):
    """Small integers, weights that are powers of two; a sum that rounds may depend on the recipe's order."""
    models = [c.contiguous() for c in torch.tensor(rows, dtype=torch.float32).unbind(1)]
    given_weights, given_densities = [1.0, 0.5, 2.0, 0.25], [density, 1.0, 0.5, 0.75]
    extra = {"base": torch.zeros(len(rows))} if method != "linear" else {"normalize": False}
    spread = {"density": given_densities, "divisor": "count"} if method == "ties" else {}
    first = wm.merge_tensors(models, method, weight=given_weights, **spread, **extra)
    if spread:
        spread["density"] = [given_densities[i] for i in order]
    moved = [models[i] for i in order]
    second = wm.merge_tensors(moved, method, weight=[given_weights[i] for i in order], **spread, **extra)
    assert torch.equal(first, second)


@pytest.mark.parametrize("method", RELATIVE)
@given(power=st.integers(-8, 20), seed=st.integers(0, 5))
@settings(deadline=None, max_examples=20)
def test_scaling_all_by_a_power_of_two_scales_the_result(method, power, seed):
    """Unless the sum of magnitudes falls below 1e-7, where nothing is rescaled."""
    base, models = family("fp32", 3, 300, seed=seed)
    chosen = options(method, 3, densities(3))
    first = wm.merge_tensors(models, method, base=base, **chosen)
    second = wm.merge_tensors([m * 2.0**power for m in models], method, base=base * 2.0**power, **chosen)
    assert torch.equal(first * 2.0**power, second)


@pytest.mark.parametrize("method", RELATIVE)
def test_elements_do_not_see_each_other(method):
    """Without a statistic a permutation of the elements permutes the result; dropping depends on the place."""
    base, models = family("fp32", 3, 1031)
    order = torch.randperm(1031, generator=torch.Generator().manual_seed(0))
    chosen = options(method, 3, 1.0)
    first = wm.merge_tensors(models, method, base=base, **chosen)
    second = wm.merge_tensors([m[order] for m in models], method, base=base[order], **chosen)
    assert_same_bits(first[order], second)
