"""Targets whose memory is not their values, or must not be written: refused by name before anything is touched."""

import pytest
import torch
import warpmerge as wm
from odd_arrays import NUMPY_REFUSED, NUMPY_VALUES, TORCH_REFUSED, inference, memory_map, unaligned
from warpmerge.errors import CheckpointError, UsageError


def fill(target, like=None, **pool):
    """Merges a model of fives, of the shape and dtype of `like`, into {"w": target}."""
    like = target if like is None else like
    model = torch.full(tuple(like.shape), 5, dtype=like.dtype)
    return wm.Pool(None, [{"w": model}], device="cpu", **pool).merge("linear", weight=1, into={"w": target})["w"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", TORCH_REFUSED)
def test_odd_targets(kind):
    with pytest.raises(wm.MergeError, match=r"^tensor 'w' of the target .*"):
        fill(TORCH_REFUSED[kind][0](), torch.ones(4))


@pytest.mark.parametrize("make", [*NUMPY_VALUES.values(), *(make for make, _ in NUMPY_REFUSED.values())])
def test_targets_that_are_no_tensors(make):
    with pytest.raises(UsageError, match=r"^tensor 'w' of the target is a .*; give torch tensors to merge into"):
        fill(make(), torch.ones(4))


NOT_WRITABLE = {
    "expanded": (lambda: torch.ones(1).expand(4), "is not contiguous"),
    "overlaps with itself": (lambda: torch.ones(4).as_strided((3, 2), (1, 1)), "is not contiguous"),
    "transposed": (lambda: torch.ones(2, 3).T, "is not contiguous"),
    "negated": (lambda: torch._neg_view(torch.ones(4)), "is a lazy negative or conjugate"),
    "conjugated": (lambda: torch.ones(4, dtype=torch.complex64).conj(), "is a lazy negative or conjugate"),
    "no leaf": (lambda: torch.ones(4, requires_grad=True) * 1, "is computed from other tensors.* into its detach"),
    "view of a leaf": (lambda: torch.ones(4, requires_grad=True)[:2], "is computed from other tensors"),
    "inference": (lambda: inference(lambda: torch.ones(4)), "was made in inference mode"),
    "read-only memory": (lambda: torch.from_numpy(memory_map()), "is memory that is mapped read-only"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", NOT_WRITABLE)
def test_targets_that_must_not_be_written(kind):
    make, message = NOT_WRITABLE[kind]
    target = make()
    before = target.tolist()
    with pytest.raises(CheckpointError, match=f"^tensor 'w' of the target {message}"):
        fill(target)
    assert target.tolist() == before


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64, torch.bool, torch.int64])
def test_a_target_must_hold_the_dtype(dtype):
    """Four bytes must not be written for an element of one."""
    guard = torch.zeros(64, dtype=torch.uint8)
    with pytest.raises(CheckpointError, match=f"is {dtype}, which cannot hold float32"):
        fill(guard[:32].view(dtype), torch.ones(32 // dtype.itemsize))
    assert not guard.any()


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize(
    "make",
    [
        unaligned,
        lambda: torch.nn.Parameter(torch.ones(4)),
        lambda: torch.ones(4, requires_grad=True).detach(),
        lambda: torch.ones(9)[1:5],
        lambda: torch.from_numpy(memory_map("c")),
        lambda: torch.ones(()),
        lambda: torch.ones(1, 4).expand(1, 4),
        lambda: torch.empty(0, 3),
    ],
    ids=["unaligned", "leaf", "detached", "slice", "mapped", "no dimension", "one row", "empty"],
)
def test_targets_of_all_kinds(make, backend):
    target = make()
    assert fill(target, backend=backend) is target
    assert (target == 5).all()


def test_inference_tensors_in_inference_mode():
    with torch.inference_mode():
        assert fill(torch.ones(4)).tolist() == [5] * 4


def test_autograd_knows_that_a_target_was_written():
    weight = torch.nn.Parameter(torch.ones(4))
    loss = (weight**2).sum()
    fill(weight)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    (weight**2).sum().backward()
    assert weight.grad.tolist() == [10] * 4


# --- targets that overlap -------------------------------------------------------------------------------------------


def merge_into_one_memory(**names):
    """Merges fives into views of one memory. Each view is a function of it."""
    memory = torch.zeros(16)
    targets = {name: view(memory) for name, view in names.items()}
    models = {name: torch.full(tuple(view.shape), 5, dtype=view.dtype) for name, view in targets.items()}
    try:
        wm.Pool(None, [models], device="cpu").merge("linear", weight=1, into=targets)
    except CheckpointError:
        assert not memory.any()
        raise
    assert (memory == 5).all()


@pytest.mark.parametrize(
    "other",
    [
        lambda m: m[4:12],
        lambda m: m[2:4],
        lambda m: m[:4],
        lambda m: m[:8].view(2, 4),
        lambda m: m.view(torch.bfloat16)[:8],
        lambda m: m[7:15],
    ],
)
def test_targets_that_overlap(other):
    with pytest.raises(CheckpointError, match=r"'(a' and 'b|b' and 'a)' overlap in the target"):
        merge_into_one_memory(a=lambda m: m[:8], b=other)
    with pytest.raises(CheckpointError, match="overlap in the target"):
        merge_into_one_memory(long=lambda m: m, a=lambda m: m[:2], b=other)


def test_targets_side_by_side():
    merge_into_one_memory(a=lambda m: m[:8], b=lambda m: m[8:], c=lambda m: m[:0])


def test_a_tied_target_has_one_dtype():
    weight = torch.ones(4, dtype=torch.float16)
    memory = torch.zeros(4, dtype=torch.float16)
    pool = wm.Pool(None, [{"a": weight, "b": weight}], device="cpu")
    pool.merge("linear", weight=1, into={"a": memory, "b": memory})
    assert memory.tolist() == [1] * 4
    with pytest.raises(CheckpointError, match="'a' and 'b' overlap in the target"):
        pool.merge("linear", weight=1, into={"a": memory, "b": memory.view(torch.bfloat16)})


# --- modules --------------------------------------------------------------------------------------------------------


class Copying(torch.nn.Linear):
    """As modules do whose parameters are distributed, packed or adapted."""

    def state_dict(self, **options):
        return {name: tensor.detach().clone() for name, tensor in super().state_dict(**options).items()}


class Viewing(torch.nn.Linear):
    def state_dict(self, **options):
        return {name: tensor.detach() for name, tensor in super().state_dict(**options).items()}


def test_a_module_that_gives_copies_would_lose_what_is_merged():
    model = {"weight": torch.full((2, 3), 5.0), "bias": torch.full((2,), 5.0)}
    with wm.Pool(None, [model], device="cpu") as pool:
        with pytest.raises(UsageError, match=r"'weight' of the target is a copy that its state_dict\(\) makes"):
            pool.merge("linear", weight=1, into=Copying(3, 2))
        pool.merge("linear", weight=1, into=(module := Viewing(3, 2)))
    assert (module.weight == 5).all() and (module.bias == 5).all()


def test_what_else_is_in_a_target():
    weight = torch.ones(4)
    target = {"w": weight, "tied": weight, "_extra_state": b"x", "version": 3, "empty": torch.empty(0)}
    pool = wm.Pool(None, [{"w": torch.full((4,), 5.0)}], device="cpu")
    pool.merge("linear", weight=1, into=target)
    assert weight.tolist() == [5] * 4
    for odd in (torch.ones(4).to_sparse(), torch.ones(3), torch.empty(3, device="meta")):
        with pytest.raises(CheckpointError, match="the target has the tensor 'odd', but the models lack it"):
            pool.merge("linear", weight=1, into=target | {"odd": odd})
