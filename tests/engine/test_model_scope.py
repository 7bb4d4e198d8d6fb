"""`scope: model` is the method on all tensors laid end to end: compared with the same method on one long tensor."""

from __future__ import annotations

import math

import numpy as np
import oracles
import pytest
import torch
import warpmerge as wm
from helpers import array, llama, read_model, write_model
from kernel_helpers import ALL_DTYPES, assert_same_bits, family
from warpmerge.engine import model_select
from warpmerge.errors import CheckpointError, UsageError

SHAPES = [(53, 70), (5000,), (0,), (211, 33), (), (3,)]
WEIGHTS = [0.3, 0.4, 0.5]
BACKENDS = ["torch", "cpu"]

METHODS = {
    "ties": ("ties", True, {"weight": WEIGHTS, "density": 0.3}),
    "ties-mixed": ("ties", True, {"weight": WEIGHTS, "density": [0.2, 1.0, 0.0]}),
    "ties-all": ("ties", True, {"weight": WEIGHTS, "density": 0.5, "ties": "keep_all"}),
    "ties-majority": ("ties", True, {"weight": WEIGHTS, "density": 0.5, "cancelled": "majority"}),
    "ties-l1": ("ties", True, {"weight": WEIGHTS, "density": 0.4, "rescale": "l1"}),
    "ties-paper": ("ties", True, {"semantics": "paper", "density": 0.2}),
    "krum": ("krum", False, {}),
    "multi_krum": ("multi_krum", False, {"f": 0, "m": 2}),
    "geometric_median": ("geometric_median", False, {"weight": WEIGHTS}),
    "norm_clipped_mean": ("norm_clipped_mean", True, {"weight": WEIGHTS, "clip": 0.05}),
    "norm_clipped_mean-auto": ("norm_clipped_mean", True, {}),
    "ramplus_tl": ("ramplus_tl", True, {"epsilon": 1e-3}),
    "emr": ("emr", True, {}),
    "emr-task": ("emr", True, {"task": 2}),
    "pcb": ("pcb", True, {}),
}


def model(dtype, *, models=3, sigma=2e-3):
    """A base and its fine-tunes as dicts of tensors."""
    parts = [family(dtype, models, shape, seed=i, sigma=sigma) for i, shape in enumerate(SHAPES)]
    names = [f"t{i}" for i in range(len(SHAPES))]
    tuned = [{n: tuned[k] for n, (_, tuned) in zip(names, parts, strict=True)} for k in range(models)]
    return {n: base for n, (base, _) in zip(names, parts, strict=True)}, tuned


def end_to_end(tensors):
    return torch.cat([t.reshape(-1) for t in tensors.values()])


# The reference, a few milliseconds for each tensor and request, with both compute types.
RUNS = [*(("cpu", dtype) for dtype in ALL_DTYPES), ("torch", "bf16"), ("torch", "mixed64")]


@pytest.mark.parametrize(("backend", "dtype"), RUNS)
@pytest.mark.parametrize("case", METHODS)
def test_a_model_is_one_long_tensor(case, dtype, backend):
    method, has_base, parameters = METHODS[case]
    base, tuned = model(dtype)
    given = base if has_base else None
    merged = wm.merge_state_dicts(
        tuned, method, base=given, backend=backend, **{"scope": "model", **parameters}, out_dtype=torch.float32
    )
    whole = wm.merge_tensors(
        [end_to_end(t) for t in tuned],
        method,
        base=end_to_end(base) if has_base else None,
        backend="torch",
        **{**parameters, "scope": "tensor"},
        out_dtype=torch.float32,
    )
    # Sums are taken in another order: the solved coefficients may differ in float64's last bits.
    if method == "ties" and parameters.get("rescale") != "l1":
        assert_same_bits(end_to_end(merged), whole, case)
    else:
        torch.testing.assert_close(end_to_end(merged), whole, rtol=3e-7, atol=1e-8)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("policy", ["lowest_index", "keep_all"])
def test_ties_on_a_coarse_grid_are_placed_in_the_whole_model(policy, backend):
    """Few distinct magnitudes: the threshold's ties are in every tensor, and end in the middle of one."""
    generator = torch.Generator().manual_seed(5)
    base = {f"t{i}": torch.zeros(257, 40) for i in range(4)}
    tuned = [
        {n: torch.randint(-2, 3, t.shape, generator=generator).float() * 2.0**-k for n, t in base.items()}
        for k in range(2)
    ]
    for density in (0.1, 0.35, 0.5, 0.77):
        parameters = {"weight": [1, 0.5], "density": density, "ties": policy}
        merged = wm.merge_state_dicts(tuned, "ties", base=base, scope="model", backend=backend, **parameters)
        whole = wm.merge_tensors(
            [end_to_end(t) for t in tuned], "ties", base=end_to_end(base), backend="torch", **parameters
        )
        assert_same_bits(end_to_end(merged), whole, density)


def test_the_papers_ties_by_sorting():
    base, tuned = model("fp32")
    merged = wm.merge_state_dicts(tuned, "ties", base=base, semantics="paper", density=0.2)
    origin = end_to_end(base).double().numpy()
    deltas = np.array([end_to_end(t).double().numpy() - origin for t in tuned])
    for d in deltas:
        magnitudes = np.sort(np.abs(d))[::-1]
        d[np.abs(d) < magnitudes[int(0.2 * d.size) - 1]] = 0
    votes = deltas.sum(0)
    sign = np.sign(votes)
    sign[sign == 0] = np.sign(sign.sum()) or -1
    agree = deltas * sign > 0
    mean = (deltas * agree).sum(0) / np.maximum(agree.sum(0), 1)
    wanted = oracles.Expected(origin + mean, np.abs(origin) + np.abs(deltas).max(0))
    oracles.assert_accurate(end_to_end(merged), wanted)


def test_cancelled_votes_take_the_majoritys_sign():
    base = {"a": torch.zeros(3), "b": torch.zeros(3)}
    tuned = [{"a": torch.tensor([1.0, -1, -1]), "b": torch.tensor([-1.0, 0, 0])},
             {"a": torch.tensor([-1.0, -1, -1]), "b": torch.tensor([-1.0, 0, 0])}]  # fmt: skip
    plus = wm.merge_state_dicts(tuned, "ties", base=base, weight=1, scope="model")
    majority = wm.merge_state_dicts(tuned, "ties", base=base, weight=1, scope="model", cancelled="majority")
    assert plus["a"].tolist() == [1, -1, -1]
    assert majority["a"].tolist() == [-1, -1, -1]
    assert torch.equal(plus["b"], majority["b"])


@pytest.mark.parametrize("kept", [0, 1 << 22])
def test_threshold_of_any_interval(monkeypatch, kept):
    """A bracket that misses on either side, one of a single key, and histograms that are not remembered."""
    monkeypatch.setattr(model_select, "KEPT_BINS", kept)
    base, tuned = model("bf16")
    wanted = wm.merge_state_dicts(tuned, "ties", base=base, scope="model", weight=1, density=0.4, backend="torch")
    for low, high in [(0, 1), (2**31 - 2, 2**31 - 1), (0, 2**31 - 1), (0x3A000000, 0x3A000000), (1, 0x3A800000)]:

        def bracket(model, searches, request, low=low, high=high):
            for search in searches:
                search.low, search.high = low, high

        monkeypatch.setattr(model_select, "_bracket", bracket)
        merged = wm.merge_state_dicts(tuned, "ties", base=base, scope="model", weight=1, density=0.4)
        assert_same_bits(end_to_end(merged), end_to_end(wanted), (low, high))


def test_files_pools_and_dicts_agree(tmp_path):
    names = ("base", "a", "b", "c")
    for seed, name in enumerate(names):
        write_model(tmp_path / name, llama(seed))
    base, *tuned = ({n: torch.from_numpy(v) for n, v in llama(seed).items()} for seed in range(len(names)))
    for method, parameters in [
        ("ties", {"weight": 1, "density": 0.3}),
        ("krum", {"f": 0}),
        ("norm_clipped_mean", {"clip": 1.0}),
    ]:
        document = {"merge_method": method, "models": [str(tmp_path / m) for m in names[1:]]}
        document["parameters"] = {**parameters, "scope": "model"}
        document["base_model"] = str(tmp_path / "base")
        wm.merge(document, tmp_path / "out", overwrite=True, sync=False, shard_size="100KB")
        files = {name: torch.from_numpy(array(raw).copy()) for name, raw in read_model(tmp_path / "out").items()}
        given = base if method != "krum" else None
        merged = wm.merge_state_dicts(tuned, method, base=given, scope="model", **parameters)
        with wm.Pool(base, tuned) as pool:
            pooled = pool.merge(method, scope="model", **parameters)
        for name in base:
            assert_same_bits(merged[name], files[name], name)
            assert_same_bits(pooled[name], files[name], name)


def test_emr_rescales_by_sums_or_by_means():
    base, tuned = model("fp32")
    deltas = [{n: (t[n] - base[n]).double().reshape(-1).numpy() for n in base} for t in tuned]
    unified, own = {}, {}
    for name in base:
        d = np.array([m[name] for m in deltas])
        sign = np.where(d.sum(0) > 0, 1, -1)
        unified[name] = sign * np.max(np.where(d * sign > 0, np.abs(d), 0), axis=0, initial=0) * (d[1] * sign > 0)
        own[name] = d[1]
    filled = [n for n in base if base[n].numel()]

    def share(total):
        return sum(total(np.abs(own[n])) for n in filled) / sum(total(np.abs(unified[n])) for n in filled)

    for rescaler, total in (("sums", np.sum), ("means", np.mean)):
        merged = wm.merge_state_dicts(tuned, "emr", base=base, task=2, scope="model", rescaler=rescaler)
        for name in base:
            origin = base[name].double().reshape(-1).numpy()
            wanted = origin + share(total) * unified[name]
            np.testing.assert_allclose(merged[name].double().reshape(-1).numpy(), wanted, rtol=1e-6, atol=1e-8)


def test_krum_copies_one_model():
    base, tuned = model("bf16", models=4)
    tuned[1] = {n: t + 1 for n, t in tuned[1].items()}
    merged = wm.merge_state_dicts(tuned, "krum", scope="model")
    chosen = [k for k in range(4) if all(torch.equal(merged[n], tuned[k][n]) for n in base)]
    assert len(chosen) == 1 and chosen != [1]


def test_one_value_for_all_tensors(tmp_path):
    for seed, name in enumerate(("base", "a")):
        write_model(tmp_path / name, llama(seed))
    document = {
        "merge_method": "ties",
        "base_model": str(tmp_path / "base"),
        "models": [str(tmp_path / "a")],
        "parameters": {"weight": 1, "density": [{"filter": "mlp", "value": 0.5}, 0.9], "scope": "model"},
    }
    with pytest.raises(UsageError, match="one value, without gradients and filters"):
        wm.merge(document, tmp_path / "out")


@pytest.mark.parametrize("case", METHODS)
def test_models_without_elements(case):
    method, has_base, parameters = METHODS[case]
    empty = {"a": torch.empty(0, 3), "b": torch.empty(0)}
    base = empty if has_base else None
    merged = wm.merge_state_dicts([empty] * 3, method, base=base, **{"scope": "model", **parameters})
    assert {n: t.shape for n, t in merged.items()} == {n: t.shape for n, t in empty.items()}
    assert wm.merge_state_dicts([{}] * 3, method, base={} if has_base else None, scope="model", **parameters) == {}


def test_other_methods_have_no_such_scope():
    with pytest.raises(UsageError, match="no parameter 'scope'"):
        wm.merge_tensors([torch.ones(3)], "linear", weight=1, scope="model")
    with pytest.raises(UsageError, match="expected one of tensor, model"):
        wm.merge_tensors([torch.ones(3)], "ties", base=torch.ones(3), weight=1, scope="row")


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_element_that_is_not_finite_is_named(backend):
    base, tuned = model("fp32")
    tuned[1]["t3"][5, 7] = math.nan
    with pytest.raises(CheckpointError, match="'t3' has NaN or infinite elements: 1 of 6,963 in 'model 1'"):
        wm.merge_state_dicts(tuned, "ties", base=base, weight=1, density=0.5, scope="model", backend=backend)
    for tensors in (base, *tuned):
        tensors["t3"] = base["t3"].clone()
        tensors["t3"][5, 7] = math.nan
    merged = wm.merge_state_dicts(tuned, "ties", base=base, weight=1, density=0.5, scope="model", backend=backend)
    assert_same_bits(merged["t3"], base["t3"])
