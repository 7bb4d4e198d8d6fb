"""What is given as a tensor: its values are merged, or it is refused by name. Its memory alone never decides."""

import numpy as np
import pytest
import torch
import warpmerge as wm
from helpers import CONFIG, write_model
from odd_arrays import NUMPY_REFUSED, NUMPY_VALUES, TORCH_REFUSED, TORCH_VALUES, Scaled, V, fake, tensor

# --- entry points: each gives (x + y) / 2, and calls x so in messages -----------------------------------------------


def running(first, second, file=None):
    mean = wm.RunningMean(file=file)
    mean.update({"w": first})
    mean.update({"w": second})
    return mean.mean()["w"]


def pooled(base, models, method="linear", **parameters):
    with wm.Pool(base, [{"w": model} for model in models], device="cpu") as pool:
        return pool.merge(method, **parameters)["w"]


def backend(name):
    return lambda x, y, path: wm.merge_tensors([x, y], "linear", weight=1, name="w", backend=name)


def state_dicts(x, y, path):
    return wm.merge_state_dicts([{"w": x}, {"w": y}], "linear", weight=1)["w"]


ENTRIES = {
    "merge_tensors": (backend("cpu"), "model 0"),
    "on the torch backend": (backend("torch"), "model 0"),
    "second": (lambda x, y, path: wm.merge_tensors([y, x], "linear", weight=1, name="w"), "model 1"),
    "base": (
        lambda x, y, path: wm.merge_tensors([y], "task_arithmetic", base=x, weight=0.5, name="w"),
        "the base",
    ),
    "state dict": (state_dicts, "model 0"),
    "checkpoint": (lambda x, y, path: running(x, y), "checkpoint 1"),
    "second checkpoint": (lambda x, y, path: running(y, x), "checkpoint 2"),
    "state in a file": (lambda x, y, path: running(y, x, path / "state.safetensors"), "checkpoint 2"),
}
TORCH_ENTRIES = ENTRIES | {
    "pool": (lambda x, y, path: pooled(None, [y, x], weight=1), "model 1"),
    "base of a pool": (lambda x, y, path: pooled({"w": x}, [y], "task_arithmetic", weight=0.5), "the base"),
}


def values(array):
    """As the library itself gives them: floats of python in nested lists, in an array of float64."""
    return np.array(array.tolist(), np.float64).reshape(array.shape)


def check_mean(merge, x, path):
    given = values(x)
    assert given.size == 0 or set(given.flat) <= set(V)
    y = np.full(given.shape, 2, np.float32)
    merged = merge(x, torch.from_numpy(y) if isinstance(x, torch.Tensor) else y, path)
    assert type(merged) is (torch.Tensor if isinstance(x, torch.Tensor) else np.ndarray)
    assert np.array_equal(values(merged), (given + 2) / 2) and tuple(merged.shape) == given.shape
    assert np.array_equal(values(x), given)


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("kind", NUMPY_VALUES)
def test_values_of_numpy_arrays(kind, entry, tmp_path):
    check_mean(ENTRIES[entry][0], NUMPY_VALUES[kind](), tmp_path)


@pytest.mark.parametrize("entry", TORCH_ENTRIES)
@pytest.mark.parametrize("kind", TORCH_VALUES)
def test_values_of_torch_tensors(kind, entry, tmp_path):
    check_mean(TORCH_ENTRIES[entry][0], TORCH_VALUES[kind](), tmp_path)


def check_refused(merge, title, x, y, message, path):
    before = values(y)
    with pytest.raises(wm.UsageError, match=f"tensor 'w' of {title} .*{message}"):
        merge(x, y, path)
    assert np.array_equal(values(y), before)


# A base of None is a base that is not given.
REFUSALS = sorted({(kind, entry) for kind in NUMPY_REFUSED for entry in ENTRIES} - {("none", "base")})


@pytest.mark.parametrize(("kind", "entry"), REFUSALS)
def test_what_is_refused_beside_numpy_arrays(kind, entry, tmp_path):
    make, message = NUMPY_REFUSED[kind]
    check_refused(*ENTRIES[entry], make(), np.full(4, 2, np.float32), message, tmp_path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("entry", TORCH_ENTRIES)
@pytest.mark.parametrize("kind", TORCH_REFUSED)
def test_what_is_refused_beside_torch_tensors(kind, entry, tmp_path):
    make, message = TORCH_REFUSED[kind]
    check_refused(*TORCH_ENTRIES[entry], make(), torch.full((4,), 2.0), message, tmp_path)


# --- types that are copied ------------------------------------------------------------------------------------------

COPIED = {
    **{
        f"torch {d}": (lambda d=d: torch.tensor([0, 1, 200]).to(getattr(torch, d)))
        for d in ("bool", "uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "complex64")
    },
    **{f"numpy {d}": (lambda d=d: np.array([0, 1, 3], d)) for d in ("?", "u1", ">i2", ">u2", ">i4", ">u8", ">c8")},
    "conjugated": lambda: torch.tensor([1 + 2j, 3 - 4j]).conj(),
    "conjugated and strided": lambda: torch.tensor([[1 + 2j, 3 - 4j], [5j, 6]]).mH,
    "negated": lambda: torch._neg_view(torch.tensor([1 + 2j])),
}


@pytest.mark.parametrize("kind", COPIED)
def test_what_is_copied_keeps_its_values(kind):
    x = COPIED[kind]()
    results = [wm.merge_tensors([x], "passthrough"), wm.merge_tensors([x, COPIED[kind]()], "linear", weight=1)]
    if isinstance(x, torch.Tensor):
        results.append(pooled(None, [x, x], weight=1))
    for merged in results:
        assert merged.tolist() == x.tolist()
        assert merged.dtype == (x.dtype if isinstance(x, torch.Tensor) else x.dtype.newbyteorder("="))


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_small_floats_are_copied_but_never_averaged(dtype):
    x = tensor().to(getattr(torch, dtype))
    assert torch.equal(wm.merge_tensors([x], "passthrough").float(), x.float())
    for merge, _ in TORCH_ENTRIES.values():
        with pytest.raises(wm.CheckpointError, match=r"quantized|dequantize"):
            merge(x, x, None) if merge is not ENTRIES["state in a file"][0] else running(x, x)


# --- codes, whose values are elsewhere ------------------------------------------------------------------------------

CODES = {
    "bitsandbytes, 4 bits": {"a.weight": torch.uint8, "a.weight.quant_state.bitsandbytes__nf4": torch.uint8},
    "bitsandbytes, 8 bits": {"a.weight": torch.int8, "a.SCB": torch.float32},
    "GPTQ": {"a.qweight": torch.int32, "a.scales": torch.float16},
    "compressed-tensors": {"a.weight_packed": torch.int32, "a.weight_scale": torch.bfloat16},
    "HQQ": {"W_q": torch.uint8, "scale": torch.float16},
}


@pytest.mark.parametrize("kind", CODES)
def test_codes_are_no_weights(kind):
    """A base would give its own codes to the mean of the scales."""
    base, model = ({name: torch.full((4,), k, dtype=d) for name, d in CODES[kind].items()} for k in (1, 2))
    calls = [
        lambda: wm.merge_state_dicts([model], "linear", base=base, weight=1),
        lambda: wm.Pool(base, [model], device="cpu").merge("linear", weight=1),
        lambda: wm.RunningMean().update(model),
    ]
    for call in calls:
        with pytest.raises(wm.CheckpointError, match=r"is quantized \(.* its names say so.*; dequantize it"):
            call()
    assert wm.merge_state_dicts([model], "passthrough").keys() == model.keys()


def test_codes_by_the_config_of_a_directory(tmp_path):
    config = CONFIG | {"quantization_config": {"quant_method": "any"}}
    coded = {"a": np.ones(3, np.float32), "b": np.ones(3, np.uint8)}
    packed = str(write_model(tmp_path / "packed", coded, config=config))
    dense = str(write_model(tmp_path / "dense", {"a": coded["a"]}, config=config))
    with pytest.raises(wm.CheckpointError, match=r"the base is quantized .*'b' is uint8"):
        wm.Pool(packed, [packed], device="cpu").merge("linear", weight=1)
    with pytest.raises(wm.CheckpointError, match=r"packed is quantized, as its config\.json says"):
        wm.RunningMean().update(packed)
    assert wm.Pool(dense, [dense], device="cpu").merge("linear", weight=1)["a"].tolist() == [1] * 3
    wm.RunningMean().update(dense)


# --- memory that two names have in common ---------------------------------------------------------------------------


def test_one_memory_with_two_meanings_is_no_tied_weight():
    x = tensor()
    merged = wm.merge_state_dicts([{"a": x, "b": torch._neg_view(x)}] * 2, "linear", weight=1)
    assert merged["a"].tolist() == V and merged["b"].tolist() == [-v for v in V]
    z = torch.tensor([1 + 2j])
    merged = wm.merge_state_dicts([{"a": z, "b": z.conj()}], "passthrough")
    assert (merged["a"].tolist(), merged["b"].tolist()) == ([1 + 2j], [1 - 2j])
    bits = np.array([1, 2], "<u4")
    merged = wm.merge_state_dicts([{"a": bits, "b": bits.view(">u4")}], "passthrough")
    assert (merged["a"].tolist(), merged["b"].tolist()) == ([1, 2], [1 << 24, 2 << 24])


def test_names_that_share_an_odd_tensor_stay_tied():
    x = torch._neg_view(-tensor())
    merged = wm.merge_state_dicts([{"a": x, "b": x}] * 2, "linear", weight=1)
    assert merged["a"] is merged["b"] and merged["a"].tolist() == V


# --- modes of torch -------------------------------------------------------------------------------------------------


PLAIN = tensor()


def merged_twice(x):
    return wm.merge_tensors([x, x], "linear", weight=1).sum()


@pytest.mark.parametrize(
    "transform",
    [
        lambda: torch.func.vmap(merged_twice)(torch.ones(2, 3)),
        lambda: torch.func.grad(merged_twice)(torch.ones(3)),
        lambda: torch.func.jvp(merged_twice, (torch.ones(3),), (torch.ones(3),)),
        lambda: torch.func.functionalize(merged_twice)(torch.ones(3)),
        lambda: torch.func.grad(lambda x: x * merged_twice(PLAIN))(torch.tensor(1.0)),
        lambda: torch.func.functionalize(lambda x: x * merged_twice(PLAIN))(torch.tensor(1.0)),
    ],
    ids=["vmap", "grad", "jvp", "functionalize", "result under grad", "result under functionalize"],
)
def test_transformed_functions(transform):
    with pytest.raises(wm.UsageError, match="is being traced or transformed by torch and has no memory"):
        transform()


def test_forward_gradients_are_no_obstacle():
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(tensor(), tensor())
        assert merged_twice(dual).item() == sum(V)


def test_a_mode_that_fakes_tensors():
    from torch._subclasses.fake_tensor import FakeTensorMode

    given = [tensor(), tensor()]
    arrays = [np.array(V, np.float32)] * 2
    with FakeTensorMode():
        with pytest.raises(wm.MergeError):
            wm.merge_tensors(given, "linear", weight=1)
        assert wm.merge_tensors(arrays, "linear", weight=1, backend="cpu").tolist() == V


@pytest.mark.parametrize(
    "huge",
    [lambda: torch.zeros(1).expand(1 << 45), lambda: np.broadcast_to(np.zeros((), ">f4"), (1 << 45,))],
    ids=["torch", "numpy"],
)
def test_no_memory_for_a_copy(huge):
    with pytest.raises(wm.DeviceError, match=r"the tensor of model 0 cannot be copied: .*"):
        wm.merge_tensors([huge()] * 2, "linear", weight=1)


# --- parameters, auxiliary tensors, functions of methods ------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", sorted(TORCH_REFUSED.keys() - {"float8_e4m3fnuz"}))  # torch can say its values
def test_odd_parameters(kind):
    with pytest.raises(wm.UsageError, match="'weight'"):
        wm.merge_tensors([tensor()] * 4, "linear", weight=TORCH_REFUSED[kind][0]())


def test_parameters_keep_their_values():
    plain = wm.merge_tensors([tensor()] * 4, "linear", weight=V, normalize=False)
    for weight in (np.array(V, ">f8"), torch._neg_view(-tensor()), np.float32(V[0]) * np.array(V)):
        merged = wm.merge_tensors([tensor()] * 4, "linear", weight=weight, normalize=False)
        assert torch.equal(merged, plain)
    with pytest.raises(wm.UsageError, match="'weight' is of the type MaskedArray"):
        wm.merge_tensors([tensor()] * 2, "linear", weight=np.ma.masked_array([1.0, 2.0], [True, False]))


def test_auxiliary_tensors():
    models = [{"w": torch.zeros(4)}, {"w": torch.ones(4)}]
    fisher = [{"w": torch.full((4,), 2.0)}, {"w": torch._neg_view(-tensor())}]
    merged = wm.merge_state_dicts(models, "fisher", fisher=fisher)["w"].double()
    wanted = torch.tensor(V, dtype=torch.float64)
    assert torch.allclose(merged, wanted / (2 + wanted), rtol=1e-6)
    with pytest.raises(wm.UsageError, match="tensor 'w' of fisher of model 1 has the layout sparse_coo"):
        wm.merge_state_dicts(models, "fisher", fisher=[fisher[0], {"w": tensor().to_sparse()}])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda x: x.to_sparse(), "a Tensor whose values are not in its memory"),
        (lambda x: x.as_subclass(Scaled), "a Scaled whose values are not in its memory"),
        (lambda x: fake(), "a FakeTensor whose values are not in its memory"),
        (lambda x: torch._neg_view(x), None),
        (lambda x: (-x).expand(4), None),
    ],
    ids=["sparse", "subclass", "fake", "negated", "expanded"],
)
@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_what_the_function_of_a_method_returns(registry, returned, message, backend):
    from warpmerge.requests import TensorFunction

    @wm.method("returns_odd", base=wm.methods.Base.METADATA, parameters=[])
    def returns_odd(tensor, p):
        """What a function returns."""
        return TensorFunction(lambda x, base: returned(x[0]), on_deltas=False)

    if message is None:
        assert wm.merge_tensors([tensor()], "returns_odd", backend=backend).tolist() == [-v for v in V]
    else:
        with pytest.raises(wm.MergeError, match=message):
            wm.merge_tensors([tensor()], "returns_odd", backend=backend)
