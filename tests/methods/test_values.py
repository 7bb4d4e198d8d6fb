"""Values of parameters in calls from Python: kinds, defaults, what is refused."""

import re

import numpy as np
import pytest
import torch
import warpmerge as wm
from kernel_helpers import assert_same_bits, family, weights
from test_api import ONE
from warpmerge.methods import find


def test_a_scalar_stands_for_all_models():
    base, models = family("fp32", 3, 100)
    for method, name in (("linear", "weight"), ("ties", "density")):
        extra = {} if method == "linear" else {"base": base, "weight": weights(3)}
        wanted = wm.merge_tensors(models, method, **{name: [0.5] * 3}, **extra)
        for value in (0.5, (0.5, 0.5, 0.5), np.full(3, 0.5), np.float32(0.5), [np.float64(0.5)] * 3, torch.tensor(0.5)):
            assert_same_bits(wm.merge_tensors(models, method, **{name: value}, **extra), wanted)


def test_arrays_as_values():
    base, models = family("fp32", 3, 100)
    wanted = wm.merge_tensors(models, "ties", base=base, weight=[0.5, 1.0, 2.0], lambda_=0.25, density=0.5)
    for array in (np.array, torch.tensor):
        for weight in (array([0.5, 1.0, 2.0]), [array(w) for w in (0.5, 1.0, 2.0)]):
            options = {"weight": weight, "lambda_": array(0.25), "density": array(0.5), "normalize": array(True)}
            assert_same_bits(wm.merge_tensors(models, "ties", base=base, **options), wanted)
    assert_same_bits(
        wm.merge_tensors(models, "ties", base=base, weight=1, semantics=np.array("paper")),
        wm.merge_tensors(models, "ties", base=base, weight=1, semantics="paper"),
    )


@pytest.mark.parametrize("method", ["ties", "dare_linear", "linear", "passthrough", "norm_clipped_mean", "sce"])
def test_none_is_as_if_not_given(method):
    """For every parameter: the preset's value, else the default."""
    base, models = family("fp32", 2, 100)
    models = models[:1] if method == "passthrough" else models
    options = {"base": base} | {p.name: 0.5 for p in find(method).parameters if p.required}
    wanted = wm.merge_tensors(models, method, **options)
    for p in find(method).parameters:
        if not p.required:
            assert_same_bits(wm.merge_tensors(models, method, **options, **{p.name: None}), wanted)
    if "semantics" in find(method).by_name:
        paper = {name: None for name in find(method).presets.get("paper", {})}
        options = {"base": base, "semantics": "paper" if paper else "mergekit"} | (options if not paper else {})
        assert_same_bits(
            wm.merge_tensors(models, method, **options | paper), wm.merge_tensors(models, method, **options)
        )


def test_lambda():
    """`lambda` is a keyword of Python: `lambda_`, or unpacked from a dictionary."""
    base, models = torch.zeros(2), [torch.ones(2)]
    assert wm.merge_tensors(models, "ties", base=base, weight=1, lambda_=0.25).tolist() == [0.25] * 2
    assert wm.merge_tensors(models, "ties", base=base, weight=1, **{"lambda": 0.25}).tolist() == [0.25] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "tise", "weight": 1}, r"unknown merge method 'tise'.*did you mean 'ties'"),
        ({"method": "nothing like it", "weight": 1}, r"lists all methods"),
        (
            {"weight": 1, "densty": 0.5},
            r"'ties' has no parameter 'densty'.*did you mean 'density'.*It takes: cancelled,",
        ),
        ({"weight": 1, "t": 0.5}, r"no parameter 't'.*It takes"),
        ({}, r"'ties' needs the parameter 'weight'"),
        ({"weight": [1, 2, 3]}, r"'weight': expected one value per model \(2\), got 3"),
        ({"weight": []}, r"one value per model \(2\), got 0"),
        ({"weight": "heavy"}, r"'weight': expected a number, got 'heavy'"),
        ({"weight": True}, r"'weight': expected a number, got True"),
        ({"weight": float("nan")}, r"'weight': expected a finite number, got nan"),
        ({"weight": [1, None]}, r"'weight': expected a number, got None"),
        ({"weight": None}, r"'ties' needs the parameter 'weight'"),
        ({"method": "passthrough", "tensors": [ONE], "scale": [None]}, r"'scale': expected a number, got None"),
        ({"weight": np.ones((2, 1))}, r"'weight': expected a number, got an array of the shape \[2, 1\]"),
        ({"weight": [torch.ones(2), 1]}, r"'weight': expected a number, got \[1.0, 1.0\]"),
        ({"weight": torch.ones(2, device="meta")}, r"'weight' is on the device meta and holds no data"),
        ({"weight": 1, "lambda_": np.ones(2)}, r"'lambda': expected a number, got \[1.0, 1.0\]"),
        ({"weight": 1, "normalize": torch.ones(2, 2)}, r"'normalize'.*shape \[2, 2\]"),
        (
            {"weight": 1, "elect": np.array(["a", "b"])},
            r"'elect': expected one of weighted, unweighted, got \['a', 'b'\]",
        ),
        ({"weight": 1e300}, r"'weight': expected a number of at most 1e\+30 in magnitude, got 1e\+300"),
        ({"weight": [1, -2e30]}, r"'weight': expected a number of at most 1e\+30 in magnitude, got -2e\+30"),
        ({"weight": 1, "lambda_": 1e39}, r"'lambda': expected a number of at most"),
        (
            {"method": "fisher", "fisher": [ONE] * 2, "floor": 1e31},
            r"'floor': expected a number >= 0 of at most 1e\+30",
        ),
        ({"method": "fisher", "fisher": torch.ones(2, 8)}, r"'fisher' is a list of one tensor.* got a Tensor"),
        ({"method": "fisher", "fisher": None}, r"'fisher' needs the parameter 'fisher'"),
        ({"weight": 1, "seed": 1.0}, r"seed must be an integer, got 1.0"),
        ({"weight": 1, "seed": True}, r"seed must be an integer, got True"),
        ({"weight": 1, "seed": None}, r"seed must be an integer, got None"),
        ({"weight": 1, "name": None}, r"name must be a string.* got None"),
        ({"weight": 1, "name": 3}, r"name must be a string.* got 3"),
        ({"weight": 1, "density": 1.5}, r"'density': expected a number in \[0, 1\], got 1.5"),
        ({"weight": 1, "density": [0.5, -0.1]}, r"'density': expected a number in \[0, 1\], got -0.1"),
        ({"weight": 1, "lambda_": [1, 2]}, r"'lambda': expected a number, got \[1, 2\]"),
        ({"weight": 1, "normalize": "yes"}, r"'normalize': expected true or false, got 'yes'"),
        ({"weight": 1, "elect": "unweigthed"}, r"'elect'.*weighted.*did you mean 'unweighted'"),
        ({"weight": 1, "backend": "cpus"}, r"unknown backend 'cpus'.*did you mean 'cpu'"),
        ({"weight": 1, "base": None}, r"'ties' needs a base"),
        ({"weight": 1, "tensors": []}, r"at least one model"),
        ({"weight": [1, -1]}, r"negative weight"),
    ],
)
def test_wrong_calls(arguments, message):
    base, models = family("fp32", 2, 8)
    call = {"tensors": models, "method": "ties", "base": base} | arguments
    with pytest.raises(wm.UsageError, match=f"(?s){message}"):
        wm.merge_tensors(**call)


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ([torch.ones(2, 3), torch.ones(3, 2)], r"\[2, 3\] in model 0 but \[3, 2\] in model 1"),
        ([torch.ones(6), torch.ones(2, 3)], r"\[6\] in model 0 but \[2, 3\] in model 1"),
        ([torch.ones(2), torch.ones(2, dtype=torch.int32)], r"float32 in model 0 but int32 in model 1"),
        ([torch.ones(2, dtype=torch.float8_e4m3fn)] * 2, r"quantized"),
        ([torch.ones(2), [1.0, 2.0]], r"is a list; give torch tensors or numpy arrays"),
        ([torch.ones(2, dtype=torch.complex128)] * 2, r"complex128, which cannot be merged"),
        ([np.array(["a"])] * 2, r"cannot be merged"),
    ],
)
def test_tensors_that_do_not_fit(models, message):
    with pytest.raises(wm.MergeError, match=message):
        wm.merge_tensors(models, "linear", weight=1, name="a.weight")


@pytest.mark.parametrize("weight", [[1, -1, 0], [1, -1, 1e-300], [1, -1, 1e-9], [1e30, -1e30, 1e20], [0, 0, 0]])
def test_weights_that_cannot_be_normalized(weight):
    with pytest.raises(wm.UsageError, match="sum to zero"):
        wm.merge_tensors([torch.ones(2)] * 3, "linear", weight=weight)


@pytest.mark.parametrize("weight", [[1, -1, 1e-7], [1e-300] * 3, [5e-324, 0, 0], [1e30] * 3])
def test_weights_of_any_size_are_normalized(weight):
    assert wm.merge_tensors([torch.ones(2)] * 3, "linear", weight=weight).tolist() == pytest.approx([1, 1], rel=1e-6)


@pytest.mark.parametrize(
    ("method", "options", "part"),
    [
        (
            "ties",
            {"weight": [1, 1e20], "lambda_": 1e20},
            "'weight' (1e+20) times 'lambda' (1e+20)",
        ),
        ("task_arithmetic", {"weight": 1e30, "lambda_": -1e30}, "is 1e+60 and may overflow; choose numbers whose"),
        ("tsv", {"lambda_": 2, "weight": 1e30}, "product is at most 1e+30"),
        ("ramplus_tl", {"r": -1e16, "alpha": 1e16}, "method 'ramplus_tl': 'r' (1e+16) times 'alpha' (1e+16)"),
    ],
)
def test_products_that_overflow(method, options, part):
    base, models = family("fp32", 2, (3, 4))
    with pytest.raises(wm.UsageError, match=re.escape(part)):
        wm.merge_tensors(models, method, base=base, **options)


def test_the_largest_products_do_not_overflow():
    base, models = family("fp32", 2, (3, 4))
    for method in ("task_arithmetic", "ties", "dare_linear", "breadcrumbs"):
        for weight, lambda_ in ((1e30, 1.0), (1e15, 1e15), (1.0, -1e30)):
            merged = wm.merge_tensors(models, method, base=base, weight=weight, lambda_=lambda_)
            assert torch.isfinite(merged).all(), (method, weight, lambda_)
    small = wm.merge_tensors(
        models, "task_arithmetic", base=base, weight=[0.5e-8, 0.5e-8], normalize=True, lambda_=1e30
    )
    assert torch.isfinite(small).all()


def test_seeds_of_numpy():
    base, models = family("fp32", 2, 100)

    def merge(seed):
        return wm.merge_tensors(models, "dare_linear", base=base, weight=1, density=0.5, seed=seed)

    assert_same_bits(merge(np.int64(7)), merge(7))
    assert not torch.equal(merge(7), merge(8))


def test_state_dicts_check_the_same():
    model = {"w": ONE}
    with pytest.raises(wm.UsageError, match="seed must be an integer, got '1'"):
        wm.merge_state_dicts([model] * 2, "linear", weight=1, seed="1")
    with pytest.raises(
        wm.UsageError, match=r"'fisher': expected a model reference, got an array of the shape \[2, 8\]"
    ):
        wm.merge_state_dicts([model] * 2, "fisher", fisher=torch.ones(2, 8))
    with pytest.raises(wm.UsageError, match="'fisher': expected a model reference, got None"):
        wm.merge_state_dicts([model] * 2, "fisher", fisher=[None, model])
    with wm.Pool(None, [model] * 2, device="cpu") as pool:
        with pytest.raises(wm.UsageError, match=r"seed must be an integer, got 1\.5"):
            pool.merge("linear", weight=1, seed=1.5)
        with pytest.raises(wm.UsageError, match=r"at most 1e\+30 in magnitude, got \[1.0, 1e\+300\]"):
            pool.sweep([[1, 1e300]])


def test_a_clip_of_infinity_clips_nothing():
    base, models = family("fp32", 3, 100)
    wanted = wm.merge_tensors(models, "norm_clipped_mean", base=base, clip=1e30)
    for clip in ("inf", float("inf"), np.float32("inf"), 1e300):
        assert_same_bits(wm.merge_tensors(models, "norm_clipped_mean", base=base, clip=clip), wanted)
    for clip in (float("nan"), float("-inf"), "-inf"):
        with pytest.raises(wm.UsageError, match="'clip': expected a"):
            wm.merge_tensors(models, "norm_clipped_mean", base=base, clip=clip)


def test_the_seed_of_a_merge_of_files():
    with pytest.raises(wm.UsageError, match=r"seed must be an integer, got 1\.5"):
        wm.merge({"merge_method": "linear", "models": ["a"], "parameters": {"weight": 1}}, "out", seed=1.5)
