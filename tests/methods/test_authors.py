"""What authors of methods need not do: yield nothing, guard against NaN, count passes, cache formulas."""

from __future__ import annotations

import gc
import importlib.util

import numpy as np
import pytest
import torch
import warpmerge as wm
from kernel_helpers import assert_same_bits, cpu, reference, run, task
from warpmerge.errors import MergeError
from warpmerge.expr import Formula, add_up, delta, draw, masked, maximum, stream_key, where
from warpmerge.methods import find, number
from warpmerge.requests import (
    Copy,
    ElectAndSum,
    Gram,
    KthLargest,
    Map,
    RandomMask,
    RankMask,
    Reduce,
    TensorFunction,
    WeightedSum,
)

pytestmark = pytest.mark.usefixtures("registry")

NAN, INF = float("nan"), float("inf")


def define(steps, *, base=wm.Base.REFERENCE, name="mine", **options):
    steps.__module__ = "notebook"
    return wm.method(name, base=base, **options)(steps)


def merged(tensors, base=None, **options):
    arrays = [np.array(t) for t in tensors]
    return wm.merge_tensors(arrays, "mine", base=None if base is None else np.array(base), **options)


def test_a_plain_function_is_a_method():
    define(
        lambda tensor, p: WeightedSum(tuple(w * 2 for w in p["weight"]), True),
        parameters=[number("weight", default=1.0, per_model=True)],
    )
    assert merged([[1.0, 2.0]], [0.0, 1.0], weight=1.0).tolist() == [2.0, 3.0]
    assert find("mine").passes({"weight": (1.0,)}) == 1
    assert find("mine").reads == "1"


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_random_numbers_come_from_a_stream_key(backend, registry):
    """The numbers that docs/numerics.md names, by public means alone; a random mask of the same key agrees."""

    def numbers(tensor, p):
        return Map(Formula((draw(stream_key(tensor.seed, tensor.name, 1)) + 0 * delta(0),)), on_deltas=True)

    def kept(tensor, p):
        mask = RandomMask(stream_key(tensor.seed, tensor.name, 1), cut=32768)
        return Map(Formula((masked(delta(0), mask),)), on_deltas=True)

    options = {"name": "model.norm.weight", "seed": 0, "backend": backend}
    define(numbers)
    drawn = merged([np.ones(4)], np.zeros(4), **options)
    assert drawn.tolist() == [59160, 14763, 34936, 21051]
    registry.pop("mine")
    define(kept)
    assert merged([np.ones(4)], np.zeros(4), **options).tolist() == (drawn < 32768).astype(float).tolist()


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_comparisons_do_not_hide_nan(backend):
    define(lambda tensor, p: Map(Formula((maximum(delta(0), 0),)), on_deltas=True))
    x, base = [1.0, -1.0, NAN, INF, -INF], [0.0, 0.0, 0.0, 0.0, 0.0]
    got = merged([x], base, nonfinite="propagate", backend=backend)
    np.testing.assert_array_equal(got, [1.0, 0.0, NAN, INF, 0.0])
    assert merged([x], base, nonfinite="base", backend=backend)[2] == 0
    with pytest.raises(wm.CheckpointError, match="NaN or infinite"):
        merged([x], base, backend=backend)


def test_inputs_that_are_not_read_do_not_matter():
    define(lambda tensor, p: Map(Formula((where(delta(1) > 0, 1, 0), delta(1) * 1)[:1]), on_deltas=True))
    got = merged([[NAN, NAN, 1.0], [1.0, NAN, INF]], [0.0, 0.0, 0.0], nonfinite="propagate")
    np.testing.assert_array_equal(got, [1.0, NAN, 1.0])


def test_infinities_that_cancel_are_not_hidden():
    define(lambda tensor, p: Map(Formula((maximum(delta(0), 0) + maximum(delta(1), 0),)), on_deltas=True))
    got = merged([[INF, INF], [-INF, INF]], [0.0, 0.0], nonfinite="propagate")
    np.testing.assert_array_equal(got, [NAN, INF])


def test_a_method_may_drop_what_is_not_finite_or_say_what_counts():
    values = (where(abs(delta(0)) < 2, delta(0), 0),)
    define(lambda tensor, p: Map(Formula(values), on_deltas=True, nan_of=None))
    assert merged([[NAN, 1.0]], [0.0, 0.0], nonfinite="propagate").tolist() == [0.0, 1.0]
    define(lambda tensor, p: Map(Formula(values), on_deltas=True, nan_of=delta(1)), name="mine")
    got = merged([[NAN, 1.0], [0.0, NAN]], [0.0, 0.0], nonfinite="propagate")
    np.testing.assert_array_equal(got, [0.0, NAN])


def backends():
    made = [cpu(), reference()]
    if importlib.util.find_spec("warpmerge._cuda_emulated"):
        from warpmerge.backends.gpu import cuda

        made.append(cuda.create(threads=2))
    return made


def test_a_rank_mask_in_any_expression(monkeypatch):
    """A plug-in's own use of one: the same bits on every backend, and those of the request that knows it."""
    monkeypatch.setenv("WARPMERGE_CUDA_EMULATION", "1")

    def drop(tensor, p):
        mask = RankMask(99, 20_000.0, 900.0, tensor.columns)
        kept = [masked(delta(k), mask) for k in range(tensor.models)]
        return Map(Formula((add_up(kept) * 0.5,)), on_deltas=True)

    def known(tensor, p):
        mask = RankMask(99, 20_000.0, 900.0, tensor.columns)
        return ElectAndSum((1.0,) * tensor.models, (mask,) * tensor.models, lambda_=0.5)

    define(drop, name="drop")
    define(known, name="known")
    g = torch.Generator().manual_seed(0)
    base, *tensors = (torch.randn(23, 37, generator=g) for _ in range(3))
    results = []
    for backend in backends():
        results += run(backend, task("drop", tensors, base), task("known", tensors, base))
        backend.close()
    gc.collect()
    assert not torch.equal(results[0], base)
    for result in results[1:]:
        assert_same_bits(result, results[0])


def test_passes_are_those_of_the_steps():
    def steps(tensor, p):
        if p["a"]:
            (selected,) = yield KthLargest((tensor.count // 2,) * tensor.models)
            assert selected.magnitude(False) > 0
        sums = yield Reduce("sum")
        gram = yield Gram(on_deltas=True)
        assert len(sums) == len(gram.norms_sq) == tensor.models
        return WeightedSum((1.0,) * tensor.models, True)

    define(steps, parameters=[number("a", default=0.0)], models=(1, 1))
    assert [find("mine").passes({"a": a}) for a in (0.0, 1.0)] == [3, 4]

    def whole(tensor, p):
        answer = yield TensorFunction(lambda tensors, base: 1.0)
        return WeightedSum((answer["never"],), True)

    define(whole, name="whole")
    assert find("whole").passes({}) == 2


@pytest.mark.parametrize(
    "function",
    [
        lambda tensor, p: Map(Formula((delta(0) * p["scale"][3],)), on_deltas=True),
        lambda tensor, p: Map(Formula((delta(3),)), on_deltas=True),
        lambda tensor, p: Map(Formula((delta(0) * p["missing"],)), on_deltas=True),
        lambda tensor, p: WeightedSum((1.0,), True),
        lambda tensor, p: Copy(2),
    ],
    ids=["an entry", "a model", "a parameter", "a coefficient", "a copy"],
)
def test_what_is_missing_is_an_error_that_names_method_and_tensor(function):
    define(function, parameters=[number("scale", default=1.0, per_model=True)])
    tensors = [{"layer.weight": np.ones(4)}, {"layer.weight": np.ones(4)}]
    with pytest.raises(MergeError, match=r"method 'mine' .*'layer\.weight'"):
        wm.merge_state_dicts(tensors, "mine", base={"layer.weight": np.zeros(4)})


def test_a_number_that_changes_compiles_nothing(monkeypatch):
    from warpmerge.expr import program

    define(
        lambda tensor, p: Map(Formula((where(draw(tensor.seed) < 9, delta(0) * p["w"], delta(0)),)), on_deltas=True),
        parameters=[number("w")],
    )
    merged([[1.0]], [0.0], w=0.25)
    monkeypatch.setattr(program, "compiled", lambda *a: pytest.fail("compiled again"))
    for w in (0.5, -0.0, 3.0):
        merged([[1.0]], [0.0], w=w, seed=int(w * 4))


def test_answers_that_a_method_cannot_use_end_the_count():
    def picky(tensor, p):
        yield KthLargest((1,) * tensor.models)
        raise ValueError("no such threshold")

    define(picky, models=(1, 1))
    assert find("mine").passes({}) == 2
