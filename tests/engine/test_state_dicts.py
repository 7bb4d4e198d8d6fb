"""Merging state dicts: names, tied tensors, integers, and what does not fit together."""

from collections.abc import Mapping

import numpy as np
import pytest
import torch
import warpmerge as wm
from kernel_helpers import assert_same_bits, family


def state(seed, dtype="fp32"):
    """A small model: a matrix, a vector, a scalar, nothing."""
    return {
        "embed.weight": family(dtype, 1, (16, 8), seed=seed)[1][0],
        "norm.weight": family(dtype, 1, 8, seed=seed + 100)[1][0],
        "scale": family(dtype, 1, (), seed=seed + 200)[1][0],
        "nothing": torch.empty(0, 8),
    }


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_every_tensor_is_merged_by_its_name(backend):
    base, a, b = state(0), state(1), state(2)
    merged = wm.merge_state_dicts([a, b], "ties", base=base, weight=[1, 0.5], density=0.5, backend=backend)
    assert list(merged) == list(base)
    for name in base:
        alone = wm.merge_tensors([a[name], b[name]], "ties", base=base[name], weight=[1, 0.5], density=0.5, name=name)
        assert_same_bits(merged[name], alone, name)


def test_the_order_of_names_in_a_model_does_not_matter():
    a, b = state(1), state(2)
    merged = wm.merge_state_dicts([a, dict(reversed(b.items()))], "linear", weight=1)
    assert list(merged) == list(a)
    for name in a:
        assert_same_bits(merged[name], wm.merge_tensors([a[name], b[name]], "linear", weight=1))


def test_modules_load_the_result():
    modules = [torch.nn.Linear(4, 3) for _ in range(3)]
    merged = wm.merge_state_dicts([m.state_dict() for m in modules], "linear", weight=1)
    modules[0].load_state_dict(merged)
    wanted = torch.stack([m.bias.detach().double() for m in modules[1:]])
    assert modules[0].bias.shape == wanted[0].shape


def test_arrays_and_tensors_mix():
    """Each result is of the kind of the base's tensor (of the first model's without a base)."""
    merged = wm.merge_state_dicts(
        [{"a": np.zeros(3, np.float32), "b": torch.zeros(3)}, {"a": torch.ones(3), "b": np.ones(3)}], "linear", weight=1
    )
    assert isinstance(merged["a"], np.ndarray) and isinstance(merged["b"], torch.Tensor)
    assert merged["a"].tolist() == merged["b"].tolist() == [0.5] * 3


# --- tied tensors ---------------------------------------------------------------------------------------------------


def tie(model):
    model["lm_head.weight"] = model["embed.weight"]
    return model


def test_tied_tensors_stay_tied():
    merged = wm.merge_state_dicts([tie(state(1)), tie(state(2))], "linear", weight=1)
    assert merged["lm_head.weight"] is merged["embed.weight"]
    module = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 2)})
    module["b"].weight = module["a"].weight
    merged = wm.merge_state_dicts([module.state_dict(), module.state_dict()], "linear", weight=1)
    assert merged["a.weight"].data_ptr() == merged["b.weight"].data_ptr()
    assert merged["a.bias"].data_ptr() != merged["b.bias"].data_ptr()


def test_tied_in_one_model_only_is_not_tied():
    untied = tie(state(2))
    untied["lm_head.weight"] = untied["embed.weight"] + 1
    merged = wm.merge_state_dicts([tie(state(1)), untied], "linear", weight=1)
    assert not torch.equal(merged["lm_head.weight"], merged["embed.weight"])


def test_equal_views_of_different_memory_are_not_tied():
    """A tensor and its first half share their address, empty ones have none."""
    whole = torch.arange(8.0)
    model = {"whole": whole, "half": whole[:4], "matrix": whole.view(2, 4), "e1": torch.empty(0), "e2": torch.empty(0)}
    merged = wm.merge_state_dicts([model, {k: v + 1 for k, v in model.items()}], "linear", weight=1)
    for name, tensor in model.items():
        assert_same_bits(merged[name], tensor + 0.5, name)


@pytest.mark.parametrize("models", [1, 2, 3])
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_views_that_are_not_contiguous_are_not_confused(kind, models):
    """Their contiguous copies must not be told apart by addresses that are free again."""
    integers = np.arange(36).reshape(3, 12)
    floats = integers.astype(np.float32)
    random = np.random.default_rng(0)
    for _ in range(40):
        columns = [(integers if random.random() < 0.7 else floats)[:, i] for i in range(12)]
        model = {f"column {i}": c if kind == "numpy" else torch.from_numpy(c) for i, c in enumerate(columns)}
        merged = wm.merge_state_dicts([model] * models, "linear", weight=1)
        for name, column in model.items():
            assert merged[name].tolist() == column.tolist(), name


class Lazy(Mapping):
    """Makes a tensor anew whenever it is asked for, as a reader of files does."""

    def __init__(self, make):
        self.make = make

    def __getitem__(self, name):
        return self.make(int(name))

    def __iter__(self):
        return map(str, range(20))

    def __len__(self):
        return 20


@pytest.mark.parametrize("models", [1, 2])
@pytest.mark.parametrize(
    "make",
    [
        lambda i, n: torch.from_numpy(np.full((n, 2), float(i), np.float32)).T,
        lambda i, n: np.full((n, 2), float(i), np.float32).T,
        lambda i, n: torch.full((n,), i),
        lambda i, n: torch.full((n,), float(i)),
    ],
    ids=["torch-strided", "numpy-strided", "integers", "contiguous"],
)
def test_tensors_that_are_made_when_asked_for_are_not_confused(make, models):
    """Nobody else keeps them: the next one may lie where the last one lay, depending on its size."""
    for n in (3, 100, 5000):
        merged = wm.merge_state_dicts([Lazy(lambda i, n=n: make(i, n))] * models, "linear", weight=1)
        for name, tensor in merged.items():
            assert (tensor == int(name)).all() and tensor.shape == make(0, n).shape, (n, name)


# --- integers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["linear", "ties", "slerp", "dare_linear"])
@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(5),
        torch.tensor([True, False]),
        torch.tensor(3),
        torch.arange(4, dtype=torch.uint8),
        torch.empty(0).int(),
    ],
)
def test_integers_are_copied(tensor, method):
    """From the base; without one they must agree. Never averaged, whatever out_dtype says."""
    parameters = {"t": 0.5} if method == "slerp" else {"weight": 1}
    base = {"base": {"ids": tensor, "w": torch.ones(2)}} if method != "linear" else {}
    models = [{"ids": tensor.clone(), "w": torch.ones(2)}, {"ids": tensor.clone(), "w": torch.zeros(2)}]
    models = models[1:] if method == "slerp" else models
    merged = wm.merge_state_dicts(models, method, out_dtype="float16", **base, **parameters)
    assert torch.equal(merged["ids"], tensor) and merged["ids"].dtype == tensor.dtype
    assert merged["ids"].data_ptr() != tensor.data_ptr() or not tensor.numel()
    assert merged["w"].dtype == torch.float16


def test_integers_that_differ():
    models = [{"ids": torch.tensor([1, 2])}, {"ids": torch.tensor([1, 3])}]
    with pytest.raises(
        wm.CheckpointError, match=r"'ids' \(int64\) differs between 'model 0' and 'model 1' .*give a base"
    ):
        wm.merge_state_dicts(models, "linear", weight=1)
    base = {"ids": torch.tensor([7, 8])}
    merged = wm.merge_state_dicts(models, "task_arithmetic", base=base, weight=1)
    assert merged["ids"].tolist() == [7, 8]


def test_numpy_integers():
    merged = wm.merge_state_dicts([{"n": np.arange(3), "b": np.array([True])}] * 2, "linear", weight=1)
    assert merged["n"].tolist() == [0, 1, 2] and merged["n"].dtype == np.arange(3).dtype
    assert merged["b"].tolist() == [True]


def test_passthrough_copies_what_cannot_be_computed():
    model = {"q": torch.ones(4).to(torch.float8_e4m3fn), "n": torch.arange(3)}
    merged = wm.merge_state_dicts([model], "passthrough")
    assert torch.equal(merged["q"].view(torch.uint8), model["q"].view(torch.uint8))
    assert torch.equal(merged["n"], model["n"])


# --- what does not fit ----------------------------------------------------------------------------------------------


def test_missing_and_extra_tensors():
    short = state(1)
    del short["norm.weight"]
    for models in ([state(0), short], [short, state(0)]):
        with pytest.raises(wm.CheckpointError, match=r"'norm\.weight'"):
            wm.merge_state_dicts(models, "linear", weight=1)
    with pytest.raises(wm.CheckpointError, match=r"'norm\.weight'"):
        wm.merge_state_dicts([state(1)], "ties", base=short, weight=1)


def test_shapes_name_the_tensor_and_the_model():
    odd = state(1)
    odd["embed.weight"] = torch.zeros(17, 8)
    with pytest.raises(wm.CheckpointError, match=r"'embed\.weight'.*\[16, 8\].*\[17, 8\].*model 1"):
        wm.merge_state_dicts([state(0), odd], "linear", weight=1)
    with pytest.raises(wm.CheckpointError, match=r"'embed\.weight'.*\[16, 8\].*\[17, 8\].*model 0"):
        wm.merge_state_dicts([odd], "ties", base=state(0), weight=1)


def test_no_models():
    with pytest.raises(wm.UsageError, match="at least one"):
        wm.merge_state_dicts([], "linear", weight=1)
    assert wm.merge_state_dicts([{}, {}], "linear", weight=1) == {}


def test_after_an_error_the_next_merge_works():
    """The error of one tensor leaves work of others in flight."""
    models = [{f"w{i}": torch.randn(5000) for i in range(30)} for _ in range(2)]
    models[1]["w20"][3] = float("nan")
    with pytest.raises(wm.CheckpointError, match="'w20'"):
        wm.merge_state_dicts(models, "slerp", t=0.5)
    models[1]["w20"][3] = 0.0
    merged = wm.merge_state_dicts(models, "slerp", t=0.5)
    assert all(t.isfinite().all() for t in merged.values())


def test_integers_that_differ_come_from_the_base_also_where_the_method_takes_no_deltas():
    models = [{"ids": torch.tensor([k, k + 1])} for k in (3, 5)]
    base = {"ids": torch.tensor([7, 8])}
    assert wm.merge_state_dicts(models, "linear", base=base, weight=1)["ids"].tolist() == [7, 8]
    with pytest.raises(wm.CheckpointError, match="and 'model 1'"):
        wm.merge_state_dicts(models, "linear", weight=1)


def test_messages_about_a_tensor_without_a_name():
    with pytest.raises(wm.CheckpointError, match=r"^the tensor is \[2\] in model 0 but \[3\] in model 1"):
        wm.merge_tensors([torch.zeros(2), torch.zeros(3)], "linear", weight=1)
    with pytest.raises(wm.UsageError, match=r"^method 'linear' has no parameter 'wieght'; did you mean 'weight'"):
        wm.merge_tensors([torch.zeros(2)], "linear", wieght=1)
