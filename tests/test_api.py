"""Merging tensors and state dicts from Python: kinds, dtypes, shapes, parameters, errors."""

import subprocess
import sys

import numpy as np
import pytest
import torch
import warpmerge as wm
from kernel_helpers import ALL_DTYPES, assert_same_bits, family, reference, run, signed, task, values_of
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
        with pytest.raises(wm.UsageError, match="dtype"):
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
    fp64 = family("fp32", 3, (26, 22))
    views = [fp64[0].T[::2, ::2], fp64[1][0][::2, ::2].T, fp64[1][1][:1, :13].expand(11, 13)]
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


# --- bases ----------------------------------------------------------------------------------------------------------


def test_base_of_slerp_is_the_end_at_zero():
    a, b = family("fp32", 1, 100, sigma=0.05)[0], family("fp32", 1, 100, seed=1)[0]
    wanted = wm.merge_tensors([a, b], "slerp", t=0.25)
    for tensors in ([b], [a, b], [b, a]):
        assert_same_bits(wm.merge_tensors(tensors, "slerp", base=a, t=0.25), wanted)
    with pytest.raises(wm.UsageError, match="exactly 2"):
        wm.merge_tensors([a.clone(), b], "slerp", base=torch.ones(100), t=0.25)


def test_a_base_that_a_method_does_not_need_gives_the_dtype():
    _, models = family("fp32", 2, 9)
    plain = wm.merge_tensors(models, "linear", weight=1, out_dtype="bfloat16")
    assert_same_bits(wm.merge_tensors(models, "linear", base=torch.zeros(9).bfloat16(), weight=1), plain)


def test_tensors_of_one_call_are_on_one_device():
    here = torch.ones(4)
    with pytest.raises(wm.UsageError, match=r"'w' of model 1 is on the device meta and holds no data"):
        wm.merge_tensors([here, here.to("meta")], "linear", weight=1, name="w")
    with pytest.raises(wm.UsageError, match="model 0 is on the device meta and holds no data; load the model first"):
        wm.merge_tensors([here.to("meta"), here], "linear", weight=1)


# --- records --------------------------------------------------------------------------------------------------------


def test_records_of_methods_and_backends():
    names = [m.name for m in wm.list_methods()]
    assert names == sorted(names) and set(CASES) <= set(names)
    for method in wm.list_methods():
        assert method.summary.endswith(".") or ":" in method.summary
        assert {p.name for p in method.parameters} >= {"nonfinite"}
        for p in method.parameters:
            assert p.kind and (p.required or p.default is None or p.convert(p.default) == p.default)
    cpu, torch_backend = (next(b for b in wm.list_backends() if b.name == n) for n in ("cpu", "torch"))
    assert cpu.available and cpu.reason is None and "cpu" in cpu.devices
    assert torch_backend.available


def test_a_backend_that_is_missing_says_why(monkeypatch):
    monkeypatch.setenv("WARPMERGE_ISA", "mmx")
    cpu = next(b for b in wm.list_backends() if b.name == "cpu")
    assert not cpu.available and "mmx" in cpu.reason
    with pytest.raises(wm.UsageError, match="mmx"):
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
    code = "import sys, warpmerge as wm; wm.merge, wm.Recipe, wm.list_methods(); print('torch' in sys.modules, end=' ')"
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
