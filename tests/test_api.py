"""Merging tensors and state dicts from Python: kinds, dtypes, shapes, parameters, errors."""

import subprocess
import sys

import numpy as np
import pytest
import torch
import warpmerge as wm
from kernel_helpers import ALL_DTYPES, assert_same_bits, family, reference, run, signed, task, values_of, weights
from warpmerge.methods import TensorInfo, find

CASES = {
    "linear": {"weight": [1, 2]},
    "task_arithmetic": {"weight": 0.5},
    "ties": {"weight": 1, "density": 0.5},
    "dare_linear": {"weight": 1, "density": 0.5},
    "dare_ties": {"weight": 1, "density": 0.5},
    "slerp": {"t": 0.3},
    "passthrough": {"scale": 2.0},
}
ONE = torch.ones(8)
WITH_BASE = {"task_arithmetic", "ties", "dare_linear", "dare_ties"}


def inputs(method, base, models):
    """Positional and keyword arguments of merge_tensors."""
    models = models[:1] if method == "passthrough" else models[:2]
    return (models, method), ({"base": base} if method in WITH_BASE else {}) | CASES[method]


def kinds(method, convert):
    base, models = family("fp32", 2, (13, 11))
    args, options = inputs(method, convert(base), [convert(m) for m in models])
    return wm.merge_tensors(*args, **options)


@pytest.mark.parametrize("method", CASES)
def test_numpy_and_torch_give_the_same(method):
    as_torch, as_numpy = kinds(method, lambda t: t), kinds(method, lambda t: t.numpy())
    assert isinstance(as_torch, torch.Tensor) and as_torch.shape == (13, 11) and as_torch.device.type == "cpu"
    assert isinstance(as_numpy, np.ndarray) and as_numpy.dtype == np.float32
    assert_same_bits(torch.from_numpy(as_numpy), as_torch)


@pytest.mark.parametrize("method", CASES)
@pytest.mark.parametrize("dtype", ALL_DTYPES)
def test_dtype_of_the_result(dtype, method):
    """That of the base, of the first tensor without one; or the one that is asked for."""
    base, models = family(dtype, 2, 37)
    args, options = inputs(method, base, models)
    first = base if method in WITH_BASE else models[0]
    assert wm.merge_tensors(*args, **options).dtype == first.dtype
    for wanted in (torch.bfloat16, torch.float64):
        assert wm.merge_tensors(*args, out_dtype=wanted, **options).dtype == wanted
    assert wm.merge_tensors(*args, out_dtype="float16", **options).dtype == torch.float16


def test_dtypes_of_numpy():
    arrays = [np.ones(3, np.float16), np.full(3, 2, np.float64)]
    assert wm.merge_tensors(arrays, "linear", weight=1).dtype == np.float16
    for wanted in (np.float32, "float32", np.dtype("float32")):
        assert wm.merge_tensors(arrays, "linear", weight=1, out_dtype=wanted).dtype == np.float32
    for wrong in ("int8", "float31", torch.int64, "bf16"):
        with pytest.raises(wm.RecipeError, match="dtype"):
            wm.merge_tensors(arrays, "linear", weight=1, out_dtype=wrong)


@pytest.mark.parametrize("method", CASES)
def test_inputs_stay_as_they_are(method):
    base, models = family("bf16", 2, 1031)
    before = [t.clone() for t in (base, *models)]
    args, options = inputs(method, base, models)
    result = wm.merge_tensors(*args, **options)
    for now, then in zip((base, *models), before, strict=True):
        assert_same_bits(now, then)
    result.zero_()
    assert_same_bits(models[0], before[1])


@pytest.mark.parametrize("method", CASES)
def test_strided_tensors(method):
    """Transposed, every second element, a broadcast one: their values count, row by row."""
    wide = family("fp32", 3, (26, 22))
    views = [wide[0].T[::2, ::2], wide[1][0][::2, ::2].T, wide[1][1][:1, :13].expand(11, 13)]
    args, options = inputs(method, views[0], views[1:])
    plain, _ = inputs(method, views[0], [v.contiguous() for v in views[1:]])
    got = wm.merge_tensors(*args, **options)
    options = {**options, **({"base": views[0].contiguous()} if "base" in options else {})}
    assert got.is_contiguous()
    assert_same_bits(got, wm.merge_tensors(*plain, **options))
    flipped = [v.numpy()[::-1] for v in views]
    args, options = inputs(method, flipped[0], flipped[1:])
    assert wm.merge_tensors(*args, **options).shape == (11, 13)


def test_parameters_that_require_gradients():
    model = torch.nn.Parameter(torch.ones(4))
    got = wm.merge_tensors([model, torch.nn.Parameter(torch.zeros(4))], "linear", weight=1)
    assert not got.requires_grad and got.tolist() == [0.5] * 4
    assert model.requires_grad


@pytest.mark.parametrize("method", CASES)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (1, 1, 1)])
def test_small_shapes(shape, method):
    base, models = torch.ones(shape), [torch.full(shape, 2.0), torch.full(shape, 3.0)]
    args, options = inputs(method, base, models)
    result = wm.merge_tensors(*args, **options)
    assert result.shape == shape
    as_numpy = inputs(method, base.numpy(), [m.numpy() for m in models])
    array = wm.merge_tensors(*as_numpy[0], **as_numpy[1])
    assert isinstance(array, np.ndarray) and array.shape == shape


# --- parameters -----------------------------------------------------------------------------------------------------


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
        ({"method": "nothing like it", "weight": 1}, r"Known: .*dare_linear, dare_ties, "),
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
        ({"weight": torch.ones(2, device="meta")}, r"'weight': the tensor cannot be read"),
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
        ({"weight": 1, "seed": 1.0}, r"seed is an integer, got 1.0"),
        ({"weight": 1, "seed": True}, r"seed is an integer, got True"),
        ({"weight": 1, "seed": None}, r"seed is an integer, got None"),
        ({"weight": 1, "name": None}, r"name is .* a string, got None"),
        ({"weight": 1, "name": 3}, r"name is .* a string, got 3"),
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
    with pytest.raises(wm.RecipeError, match=f"(?s){message}"):
        wm.merge_tensors(**call)


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ([torch.ones(2, 3), torch.ones(3, 2)], r"\[2, 3\] but \[3, 2\] in model 1"),
        ([torch.ones(6), torch.ones(2, 3)], r"\[6\] but \[2, 3\] in model 1"),
        ([torch.ones(2), torch.ones(2, dtype=torch.int32)], r"float32 but int32 in model 1"),
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
    with pytest.raises(wm.RecipeError, match="sum to zero"):
        wm.merge_tensors([torch.ones(2)] * 3, "linear", weight=weight)


@pytest.mark.parametrize("weight", [[1, -1, 1e-7], [1e-300] * 3, [5e-324, 0, 0], [1e30] * 3])
def test_weights_of_any_size_are_normalized(weight):
    assert wm.merge_tensors([torch.ones(2)] * 3, "linear", weight=weight).tolist() == pytest.approx([1, 1], rel=1e-6)


def test_seeds_of_numpy():
    base, models = family("fp32", 2, 100)
    merge = lambda seed: wm.merge_tensors(models, "dare_linear", base=base, weight=1, density=0.5, seed=seed)  # noqa: E731
    assert_same_bits(merge(np.int64(7)), merge(7))
    assert not torch.equal(merge(7), merge(8))


def test_state_dicts_check_the_same():
    model = {"w": ONE}
    with pytest.raises(wm.RecipeError, match="seed is an integer, got '1'"):
        wm.merge_state_dicts([model] * 2, "linear", weight=1, seed="1")
    with pytest.raises(
        wm.RecipeError, match=r"'fisher': expected a model reference, got an array of the shape \[2, 8\]"
    ):
        wm.merge_state_dicts([model] * 2, "fisher", fisher=torch.ones(2, 8))
    with pytest.raises(wm.RecipeError, match="'fisher': expected a model reference, got None"):
        wm.merge_state_dicts([model] * 2, "fisher", fisher=[None, model])
    with wm.Pool(None, [model] * 2, device="cpu") as pool:
        with pytest.raises(wm.RecipeError, match=r"seed is an integer, got 1\.5"):
            pool.merge("linear", weight=1, seed=1.5)
        with pytest.raises(wm.RecipeError, match=r"at most 1e\+30 in magnitude, got \[1.0, 1e\+300\]"):
            pool.sweep([[1, 1e300]])


def test_a_clip_of_infinity_clips_nothing():
    base, models = family("fp32", 3, 100)
    wanted = wm.merge_tensors(models, "norm_clipped_mean", base=base, clip=1e30)
    for clip in ("inf", float("inf"), np.float32("inf"), 1e300):
        assert_same_bits(wm.merge_tensors(models, "norm_clipped_mean", base=base, clip=clip), wanted)
    for clip in (float("nan"), float("-inf"), "-inf"):
        with pytest.raises(wm.RecipeError, match="'clip': expected a"):
            wm.merge_tensors(models, "norm_clipped_mean", base=base, clip=clip)


# --- bases ----------------------------------------------------------------------------------------------------------


def test_base_of_slerp_is_the_end_at_zero():
    a, b = family("fp32", 1, 100, sigma=0.05)[0], family("fp32", 1, 100, seed=1)[0]
    wanted = wm.merge_tensors([a, b], "slerp", t=0.25)
    for tensors in ([b], [a, b], [b, a]):
        assert_same_bits(wm.merge_tensors(tensors, "slerp", base=a, t=0.25), wanted)
    with pytest.raises(wm.RecipeError, match="exactly 2"):
        wm.merge_tensors([a.clone(), b], "slerp", base=torch.ones(100), t=0.25)


def test_a_base_that_a_method_does_not_need_gives_the_dtype():
    _, models = family("fp32", 2, 9)
    plain = wm.merge_tensors(models, "linear", weight=1, out_dtype="bfloat16")
    assert_same_bits(wm.merge_tensors(models, "linear", base=torch.zeros(9).bfloat16(), weight=1), plain)


def test_tensors_of_one_call_are_on_one_device():
    here = torch.ones(4)
    with pytest.raises(wm.RecipeError, match=r"'w' is on meta in one model, others are on cpu; move all to one device"):
        wm.merge_tensors([here, here.to("meta")], "linear", weight=1, name="w")
    with pytest.raises(wm.RecipeError, match="meta, which holds no data"):
        wm.merge_tensors([here.to("meta"), here], "linear", weight=1)


# --- records --------------------------------------------------------------------------------------------------------


def test_records_of_methods_and_backends():
    names = [m.name for m in wm.methods()]
    assert names == sorted(names) and set(CASES) <= set(names)
    for method in wm.methods():
        assert method.summary.endswith(".") or ":" in method.summary
        assert {p.name for p in method.parameters} >= {"nonfinite"}
        for p in method.parameters:
            assert p.kind and (p.required or p.default is None or p.convert(p.default) == p.default)
    cpu, torch_backend = (next(b for b in wm.backends() if b.name == n) for n in ("cpu", "torch"))
    assert cpu.available and cpu.reason is None and "cpu" in cpu.devices
    assert torch_backend.available


def test_a_backend_that_is_missing_says_why(monkeypatch):
    monkeypatch.setenv("WARPMERGE_ISA", "mmx")
    cpu = next(b for b in wm.backends() if b.name == "cpu")
    assert not cpu.available and "mmx" in cpu.reason
    with pytest.raises(wm.RecipeError, match="mmx"):
        wm.merge_tensors([torch.ones(2)], "linear", weight=1, backend="cpu")


def test_backends_agree():
    base, models = family("bf16", 3, (31, 41))
    options = {"base": base, "weight": signed(3), "density": 0.4, "rescale": "l1", "seed": 3, "name": "w"}
    results = [wm.merge_tensors(models, "dare_linear", backend=b, **options) for b in ("auto", "cpu", "torch")]
    assert_same_bits(results[0], results[1])
    assert_same_bits(results[0], results[2])


@pytest.mark.parametrize(
    ("method", "parameters", "passes"),
    [
        ("linear", {"weight": 1}, 1),
        ("passthrough", {}, 1),
        ("passthrough", {"scale": 2.0}, 1),
        ("task_arithmetic", {"weight": 1}, 1),
        ("slerp", {"t": 0.5}, 2),
        ("ties", {"weight": 1}, 1),
        ("ties", {"weight": 1, "density": 0.0}, 1),
        ("ties", {"weight": 1, "density": 0.5}, 2),
        ("ties", {"weight": 1, "density": [1.0, 0.5]}, 2),
        ("ties", {"weight": 1, "density": 0.5, "rescale": "l1"}, 3),
        ("ties", {"weight": 1, "density": 0.5, "rescale": "inverse_density"}, 2),
        ("ties", {"weight": 1, "density": [0.0, 1.0], "rescale": "l1"}, 1),
        ("dare_linear", {"weight": 1, "density": 0.5}, 2),
        ("dare_linear", {"weight": 1, "density": 0.5, "rescale": False}, 1),
        ("dare_linear", {"weight": 1, "density": 0.5, "rescale": "inverse_density"}, 1),
        ("dare_linear", {"weight": 1, "density": 1.0}, 1),
        ("dare_ties", {"weight": 1, "density": [0.5, 0.0]}, 2),
        ("dare_ties", {"weight": 1, "density": 0.0}, 1),
    ],
)
def test_passes_are_the_requests_that_are_made(method, parameters, passes):
    base, models = family("fp32", 2, 1031)
    models = models[: 1 if method == "passthrough" else 2]
    values = values_of(method, len(models), parameters)
    assert find(method).passes(values) == passes
    asked = []

    class Counting(type(reference())):
        def launch(self, work):
            asked.extend(request for _, request in work)
            return super().launch(work)

    run(Counting(), task(method, models, base if method in WITH_BASE else None, **parameters))
    assert len(asked) == passes
    steps = find(method).steps(TensorInfo("w", 1031, len(models)), values)
    assert (next(steps, None) is not None) == (passes > 1)


def test_importing_imports_neither_torch_nor_numpy():
    code = "import sys, warpmerge as wm; wm.merge, wm.Recipe, wm.methods(); print('torch' in sys.modules, end=' ')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False "
    code = "import sys, warpmerge; sys.exit(bool({'torch', 'numpy', 'yaml', 'triton'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_numpy_merges_without_torch():
    code = """if True:
        import sys, numpy as np, warpmerge as wm
        got = wm.merge_tensors([np.ones(5), np.zeros(5)], "ties", base=np.zeros(5), weight=1, density=0.5)
        sys.exit("torch" in sys.modules or got.tolist() != [1, 1, 0, 0, 0])
    """
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
