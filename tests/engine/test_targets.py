"""Merging into the tensors of a module or a state dict: they are filled where they are, or nothing is touched."""

import pytest
import torch
import warpmerge as wm
from pool_models import FIXTURES, MERGES, Module, assert_equal
from warpmerge.errors import CheckpointError, UsageError

base, models, directories, pool = FIXTURES


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("method", "parameters"), [MERGES[0], MERGES[2]])
def test_into_a_module(base, models, method, parameters, dtype):
    module = Module(base, dtype)
    places = {name: tensor.data_ptr() for name, tensor in module.state_dict().items()}
    with wm.Pool(base, models, backend="cpu") as pool:
        assert pool.merge(method, into=module, **parameters) is module
    got = module.state_dict()
    assert {name: tensor.data_ptr() for name, tensor in got.items()} == places
    assert_equal(got, wm.merge_state_dicts(models, method, base=base, out_dtype=dtype, **parameters))
    assert all(p.requires_grad and p.grad is None for p in module.parameters())


def test_into_a_state_dict(pool, base, models):
    target = {name: torch.full_like(tensor, 1) for name, tensor in base.items()}
    target["layers.0"] = target["layers.0"].float()
    target["more"] = torch.empty(0)
    pool.merge("linear", weight=1, into=target)
    wanted = wm.merge_state_dicts(models, "linear", base=base, weight=1)
    fp64 = wm.merge_state_dicts(models, "linear", base=base, weight=1, out_dtype="float32")
    assert_equal({n: target[n] for n in base}, wanted | {"layers.0": fp64["layers.0"]})


def test_into_a_module_that_ties_what_files_repeat(directories, base, models):
    """Equal tensors of two names in files, one tensor in the module: not known to be equal, so refused."""
    there, others = directories
    with wm.Pool(there, others, backend="cpu") as pool:
        with pytest.raises(CheckpointError, match="'embed' and 'head' are one tensor in the target, but differ"):
            pool.merge("linear", weight=1, into=Module(base))
        pool.merge("linear", weight=1, into=(module := Module(base, tied=False)))
    assert_equal(module.state_dict(), wm.merge_state_dicts(models, "linear", base=base, weight=1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm": torch.zeros(131)}, r"tensor 'norm' of the target has the shape \[131\], not \[130\]"),
        ({"norm": None}, "the target has no tensor 'norm'"),
        ({"other": torch.zeros(3)}, "the target has the tensor 'other', but the models lack it"),
        ({"norm": torch.zeros(260)[::2]}, "tensor 'norm' of the target is not contiguous"),
        ({"norm": torch.zeros(130, dtype=torch.int32)}, "is torch.int32, which cannot hold float16"),
        ({"ids": torch.zeros(5)}, "is torch.float32, which cannot hold int64"),
        ({"ids": torch.zeros(5, dtype=torch.int32)}, "is torch.int32, which cannot hold int64"),
    ],
)
def test_targets_that_do_not_fit(pool, base, change, message):
    target = {name: torch.full_like(tensor, 1) for name, tensor in base.items()} | change
    target = {name: tensor for name, tensor in target.items() if tensor is not None}
    before = {name: tensor.clone() for name, tensor in target.items()}
    with pytest.raises(CheckpointError, match=message):
        pool.merge("linear", weight=1, into=target)
    assert all(torch.equal(t, before[name]) for name, t in target.items())


def test_into_excludes_a_dtype(pool, base):
    with pytest.raises(UsageError, match="exclude each other"):
        pool.merge("linear", weight=1, into=dict(base), out_dtype="float32")


def test_a_target_must_not_share_memory_with_the_pool():
    tensor = torch.ones(8)
    pool = wm.Pool(None, [{"a": tensor[:4]}], device="cpu", backend="cpu")
    for target in (tensor[:4], tensor[2:6]):
        with pytest.raises(CheckpointError, match="shares memory with the pool's own tensors"):
            pool.merge("linear", weight=[1.0], into={"a": target})
    assert pool.merge("linear", weight=[1.0], into={"a": tensor[4:]})["a"].tolist() == [1] * 4
