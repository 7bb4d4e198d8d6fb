"""Means weighted by auxiliary tensors, fisher and regmean: accuracy, one method against another, degenerate inputs."""

import re

import numpy as np
import oracles_dense
import pytest
import torch
import warpmerge as wm
from kernel_helpers import DTYPES, assert_same_bits, cpu, family, reference, weights
from warpmerge.engine import loop as engine
from warpmerge.methods import find, least_squares, linalg

SHAPE = (61, 83)
FISHER = {
    "plain": {},
    "weights": {"weight": weights(3)},
    "one-left-out": {"weight": [1.0, 0.0, 2.0]},
    "normalize": {"normalize": True},
    "floor": {"floor": 1e-8},
    "floor-first": {"floor": 1e-6, "floor_of": "first", "normalize": True, "weight": weights(3)},
}


def informations(models, shape, *, decades=16, seed=0, scale=1.0):
    """From 1e-16 to 1, and a tenth of them 0."""
    generator = torch.Generator().manual_seed(seed + 50)
    made = []
    for _ in range(models):
        values = 10 ** (-decades * torch.rand(shape, generator=generator, dtype=torch.float64)) * scale
        made.append((values * (torch.rand(shape, generator=generator) > 0.1)).float())
    return made


@pytest.mark.parametrize("dtype", [*DTYPES, "mixed", "mixed64"])
@pytest.mark.parametrize("case", FISHER)
def test_fisher(case, dtype):
    """Sums of three products over the sum of three factors: some roundings, relative to the largest operand."""
    _, tensors = family(dtype, 3, SHAPE, sigma=0.02)
    for scale in (1.0, 1e-25, 1e20):
        known = informations(3, SHAPE, scale=scale)
        fp64 = any(t.dtype == torch.float64 for t in tensors)
        got = wm.merge_tensors(
            tensors, "fisher", fisher=known, out_dtype="float64" if fp64 else "float32", **FISHER[case]
        )
        wanted = oracles_dense.fisher(tensors, fisher=known, **FISHER[case])
        size = np.abs([oracles_dense.fp64(t) for t in tensors]).max(0)
        eps = 2.0**-53 if fp64 else 2.0**-24
        assert (np.abs(oracles_dense.fp64(got) - wanted) <= 12 * eps * size).all()


@pytest.mark.parametrize("case", FISHER)
def test_backends_agree(case):
    method = find("fisher")
    for shape in (0, 1, 7, 4099):
        made = []
        for backend in (cpu(threads=2, tile=512), reference()):
            _, tensors = family("bf16", 3, shape)
            task, result = companion_task("fisher", tensors, informations(3, shape), **FISHER[case])
            engine.run([task], backend)
            made.append(result)
            assert method.passes(task.values) == (2 if FISHER[case].get("normalize") else 1)
        assert_same_bits(*made)


def companion_task(method, tensors, auxiliary, **parameters):
    from kernel_helpers import buffer
    from warpmerge.engine.values import resolve_values
    from warpmerge.methods import TensorInfo
    from warpmerge.tasks import MemorySink, TensorTask

    result = torch.full_like(tensors[0], 123.0)
    values = resolve_values(find(method), len(tensors), {"fisher": [{}] * len(tensors), **parameters}, on_deltas=False)
    shapes = tuple(tuple(c.shape) for c in auxiliary)
    info = TensorInfo("w", result.numel(), len(tensors), 0, tuple(result.shape), auxiliary=shapes)
    inputs = [buffer(t) for t in [*tensors, *auxiliary]]
    sinks = [MemorySink(result.data_ptr(), result)]
    labels = [f"input {i}" for i in range(len(inputs))]
    return TensorTask.alone(info, find(method), values, inputs, None, inputs[0].dtype, sinks, labels), result


def test_equal_elements_keep_their_bits():
    _, tensors = family("bf16", 3, SHAPE)
    tensors[1][::2], tensors[2][::2] = tensors[0][::2], tensors[0][::2]
    got = wm.merge_tensors(tensors, "fisher", fisher=informations(3, SHAPE))
    assert_same_bits(got[::2], tensors[0][::2])


def test_what_no_model_knows_is_their_mean():
    _, tensors = family("fp32", 3, SHAPE)
    zeros = [torch.zeros(SHAPE)] * 3
    for options in ({}, {"normalize": True}, {"weight": [1.0, 2.0, 0.0]}):
        got = wm.merge_tensors(tensors, "fisher", fisher=zeros, **options)
        mean = wm.merge_tensors(tensors, "linear", weight=options.get("weight", 1.0))
        torch.testing.assert_close(got, mean, rtol=3e-7, atol=1e-9)
    got = wm.merge_tensors(tensors, "fisher", fisher=zeros, floor=1e-6, floor_of="first")
    assert_same_bits(got, tensors[0])


def test_equal_informations_make_a_mean():
    _, tensors = family("fp32", 3, SHAPE)
    got = wm.merge_tensors(tensors, "fisher", fisher=[informations(1, SHAPE)[0] + 1e-30] * 3, weight=weights(3))
    torch.testing.assert_close(got, wm.merge_tensors(tensors, "linear", weight=weights(3)), rtol=5e-7, atol=1e-8)


def test_the_norm_of_the_whole_model():
    """A model that is sure of one tensor is less sure of the others."""
    _, (a, b) = family("fp32", 2, (4, 5))
    models = [{"v": a, "w": a + 1}, {"v": b, "w": b + 1}]
    known = [{"v": torch.ones(4, 5), "w": torch.ones(4, 5)}, {"v": torch.ones(4, 5), "w": torch.full((4, 5), 7.0)}]
    got = wm.merge_state_dicts(models, "fisher", fisher=known, normalize=True, scope="model")
    share = [1 / 40**0.5, 1 / 1000**0.5]
    torch.testing.assert_close(got["v"], (a * share[0] + b * share[1]) / sum(share))
    torch.testing.assert_close(got["w"], (a * share[0] + b * 7 * share[1]) / (share[0] + 7 * share[1]) + 1)


def test_fisher_of_bad_values():
    _, tensors = family("fp32", 2, (4, 5))
    known = informations(2, (4, 5))
    assert_same_bits(
        wm.merge_tensors(tensors, "fisher", fisher=[-known[0], known[1] + 1e-20]), tensors[1]
    )  # below 0 counts as 0
    for options, part in (
        ({"weight": 0}, "the weights sum to zero"),
        ({"floor": -1}, "'floor': expected a number >= 0"),
        ({"nonfinite": "base"}, "method 'fisher' has no base"),
    ):
        with pytest.raises(wm.UsageError, match=re.escape(part)):
            wm.merge_tensors(tensors, "fisher", fisher=known, **options)
    known[1][0, 0] = float("nan")
    with pytest.raises(wm.CheckpointError, match="1 of 20 in 'fisher of model 1'"):
        wm.merge_tensors(tensors, "fisher", fisher=known)


def test_fisher_whose_squares_overflow():
    tensors, known = [torch.ones(3), torch.full((3,), 2.0)], [torch.full((3,), 1e200, dtype=torch.float64)] * 2
    with pytest.raises(wm.CheckpointError, match="'w' has Fisher informations whose squares overflow float64"):
        wm.merge_tensors(tensors, "fisher", fisher=known, normalize=True, name="w")
    torch.testing.assert_close(wm.merge_tensors(tensors, "fisher", fisher=known), torch.full((3,), 1.5))


@pytest.mark.parametrize("size", [1e-40, 1e-30, 1.0, 1e30])
@pytest.mark.parametrize("floor", [1e-30, 1.0, 1e30])
def test_a_floor_far_from_the_norm(floor, size):
    """Neither of them leaves the range of float32 where it is divided by the other."""
    tensors, known = [torch.ones(3), torch.full((3,), 2.0)], [torch.full((3,), size), torch.full((3,), 2 * size)]
    floored = [max(float(k[0]), floor) for k in known]
    for normalize in (False, True):
        first, second = (f / float(k.double().norm()) if normalize else f for f, k in zip(floored, known, strict=True))
        got = wm.merge_tensors(tensors, "fisher", fisher=known, floor=floor, normalize=normalize)
        torch.testing.assert_close(got, torch.full((3,), (first + 2 * second) / (first + second)), rtol=1e-6, atol=0)
        got = wm.merge_tensors(tensors, "fisher", fisher=known, floor=floor, normalize=normalize, floor_of="first")
        second *= float(known[1][0]) / floored[1]
        torch.testing.assert_close(got, torch.full((3,), (first + 2 * second) / (first + second)), rtol=1e-6, atol=0)


# --- regmean ----------------------------------------------------------------------------------------------------------

REGMEAN = {
    "plain": {},
    "weights": {"weight": weights(3)},
    "diagonal": {"alpha": 0},
    "full": {"alpha": 1, "ridge": 0},
    "ridge": {"ridge": 0.1, "weight": [1.0, 0.0, 2.0]},
}


def inputs(models, columns, tokens, seed=0):
    """Of a layer: correlated, with a few large directions."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((columns, columns)) * np.logspace(0, -2, columns)
    return [rng.standard_normal((tokens, columns)) @ mix for _ in range(models)]


def grams(xs, kind=torch.float32):
    return [torch.from_numpy(x.T @ x).to(kind) for x in xs]


@pytest.mark.parametrize("dtype", [*DTYPES, "mixed64"])
@pytest.mark.parametrize("case", REGMEAN)
def test_regmean(case, dtype):
    """Measured, beyond the rounding of the result: at most 2e-9; 1e-7 of the differences is asked for."""
    for shape in ((31, 31), (83, 40), (40, 83), (1, 9), (9, 1)):
        _, tensors = family(dtype, 3, shape, sigma=0.02)
        for given in (grams(inputs(3, shape[1], 300)), grams(inputs(3, shape[1], 300), torch.float64)):
            fp64 = torch.float64 in {t.dtype for t in [*tensors, *given]}
            kind = torch.float64 if fp64 else torch.float32
            got = wm.merge_tensors(tensors, "regmean", gram=given, out_dtype=kind, **REGMEAN[case])
            wanted = oracles_dense.regmean(tensors, gram=given, **REGMEAN[case])
            rounding = torch.finfo(kind).eps * np.linalg.norm(wanted)
            moved = np.linalg.norm(wanted - oracles_dense.fp64(tensors[0]))
            assert np.linalg.norm(oracles_dense.fp64(got) - wanted) <= 1e-7 * moved + rounding


def test_regmean_of_grams_in_tiles_and_not_quite_symmetric(monkeypatch):
    """Their symmetric part counts, and they are left as they are."""
    _, tensors = family("fp64", 3, (20, 31), sigma=0.02)
    rng = np.random.default_rng(6)
    given = grams(inputs(3, 31, 300), torch.float64)
    skew = [g + torch.from_numpy(s - s.T) for g, s in zip(given, rng.standard_normal((3, 31, 31)), strict=True)]
    copies = [s.clone() for s in skew]
    whole = wm.merge_tensors(tensors, "regmean", gram=given)
    monkeypatch.setattr(least_squares, "TILE", 8)
    torch.testing.assert_close(wm.merge_tensors(tensors, "regmean", gram=skew), whole, rtol=0, atol=1e-13)
    for after, before in zip(skew, copies, strict=True):
        assert_same_bits(after, before)


@pytest.mark.parametrize("shape", [(40, 20), (41, 20)])
def test_both_orders_of_a_quotient(shape):
    """Two matrices beside each other: up to twice as many rows as columns, the products come first."""
    rng = np.random.default_rng(7)
    a, middle, inputs_ = (rng.standard_normal(s) for s in ((shape[0], 40), (40, 20), (60, 20)))
    shares, squares = [0.3, 0.7], inputs_.T @ inputs_
    wanted = a @ middle @ np.linalg.inv(squares) + 0.3 * a[:, :20] + 0.7 * a[:, 20:]
    made = [torch.from_numpy(t) for t in (a, middle, squares)]
    got = linalg.quotient(linalg.rows_of(made[0]), *made[1:], torch.empty(shape, dtype=torch.float64), shares)
    np.testing.assert_allclose(got.numpy(), wanted, rtol=0, atol=1e-12)


def test_regmean_explains_the_outputs_best():
    """No other matrix has outputs nearer to those of the models on their own inputs."""
    _, tensors = family("fp64", 3, (20, 30), sigma=0.02)
    xs = inputs(3, 30, 100)
    got = wm.merge_tensors(tensors, "regmean", gram=grams(xs, torch.float64), alpha=1, ridge=0)
    gradient = sum(
        x.T @ x @ (oracles_dense.fp64(got) - oracles_dense.fp64(t)).T for x, t in zip(xs, tensors, strict=True)
    )
    size = sum(np.linalg.norm(x.T @ x @ oracles_dense.fp64(t).T) for x, t in zip(xs, tensors, strict=True))
    assert np.linalg.norm(gradient) < 1e-13 * size


@pytest.mark.parametrize("tokens", [1, 5, 29])
@pytest.mark.parametrize("ridge", [0.0, 1e-6])
def test_inputs_that_no_model_has_seen_leave_the_mean(tokens, ridge):
    """Fewer tokens than inputs: grams of low rank."""
    _, tensors = family("fp64", 3, (20, 90), sigma=0.02)
    xs = inputs(3, 90, tokens)
    given = grams(xs, torch.float64)
    got = wm.merge_tensors(tensors, "regmean", gram=given, alpha=1, ridge=ridge)
    wanted = oracles_dense.regmean(tensors, gram=given, alpha=1, ridge=ridge)
    mean = sum(tensors) / 3
    assert np.linalg.norm(oracles_dense.fp64(got) - wanted) < 1e-4 * np.linalg.norm(wanted - oracles_dense.fp64(mean))
    rng = np.random.default_rng(5)
    seen = np.linalg.qr(np.concatenate(xs).T)[0]
    unseen = rng.standard_normal((90, 4))
    unseen -= seen @ (seen.T @ unseen)
    np.testing.assert_allclose(oracles_dense.fp64(got - mean) @ unseen, 0, atol=1e-8)


def test_grams_that_say_nothing():
    _, tensors = family("fp32", 3, (20, 30))
    zeros = [torch.zeros(30, 30)] * 3
    mean = wm.merge_tensors(tensors, "linear", weight=1.0)
    torch.testing.assert_close(wm.merge_tensors(tensors, "regmean", gram=zeros), mean, rtol=2e-7, atol=1e-9)
    for one in range(3):
        given = [torch.eye(30) * 5 if k == one else zeros[k] for k in range(3)]
        torch.testing.assert_close(
            wm.merge_tensors(tensors, "regmean", gram=given, ridge=0), tensors[one], rtol=2e-7, atol=1e-9
        )
    same = [torch.eye(30)] * 3
    torch.testing.assert_close(wm.merge_tensors(tensors, "regmean", gram=same), mean, rtol=2e-7, atol=1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_frozen_tensor_keeps_its_bits(dtype):
    values = torch.tensor([[-0.0, 0.0, 0.1, -6e-8], [3.0, 1e-45, -7.7, 2.0]], dtype=torch.float64)
    nan = torch.tensor([[float("nan"), -float("inf"), 1.0, 2.0], [-0.0, 1.0, 0.0, 0.0]])
    for frozen in (values, values * 1e-10, values * 0, nan, values[:0]):
        frozen = frozen.to(DTYPES[dtype])
        copies = [frozen.clone() for _ in range(3)]
        assert_same_bits(wm.merge_tensors(copies, "regmean", gram=grams(inputs(3, 4, 10))), frozen)
        assert_same_bits(wm.merge_tensors(copies, "fisher", fisher=informations(3, frozen.shape)), frozen)


def test_weights_without_grams_become_the_mean():
    models = [{"norm": torch.full((3,), float(k)), "w": torch.full((2, 3), float(k))} for k in range(2)]
    given = [{"w": torch.eye(3) * (k + 1)} for k in range(2)]
    got = wm.merge_state_dicts(models, "regmean", gram=given, weight=[3, 1], ridge=0)
    assert got["norm"].tolist() == [0.25] * 3
    torch.testing.assert_close(got["w"], torch.full((2, 3), 2 / 5))


@pytest.mark.parametrize(
    ("given", "error", "part"),
    [
        (
            [torch.eye(4), torch.eye(5)],
            wm.CheckpointError,
            "has the shape [5, 5] in gram of model 1; for a weight of shape [3, 4]",
        ),
        ([torch.eye(4), None], wm.CheckpointError, "gram of model 1 lacks tensor 'w', but gram of model 0 has it"),
        ([-torch.eye(4)] * 2, wm.MergeError, "ValueError: one of its grams has elements below 0 on the diagonal"),
        ([torch.eye(4), torch.eye(4) * float("inf")], wm.CheckpointError, "in 'gram of model 1'"),
    ],
)
def test_bad_grams(given, error, part):
    _, tensors = family("fp32", 2, (3, 4))
    with pytest.raises(error, match=re.escape(part)):
        wm.merge_tensors(tensors, "regmean", gram=given, name="w")
