"""Results that are too large for their dtype: counted, and treated as the parameter `nonfinite` says."""

import json

import numpy as np
import pytest
import torch
import warpmerge as wm
from formula_helpers import assert_same_tensors, carry_out
from kernel_helpers import CONFIGURATIONS, assert_same_bits, cpu, reference
from overflow_cases import KINDS, OUT, at_the_end, large, requests, too_large
from warpmerge.requests import TensorFunction, WeightedSum

COUNT = 2 * 512 + 77  # stages and a rest
BACKENDS = ["cpu", "torch"]
NOT_FINITE = float("inf")


def outcome(backend, request, outputs, tensors, base, out, policy):
    options = {"outputs": outputs, "out_dtype": out, "nonfinite": policy}
    _, counts, results = carry_out(backend, request, tensors, base if request.on_deltas else None, **options)
    return counts, results


@pytest.mark.parametrize("out", OUT)
@pytest.mark.parametrize("source", [torch.float32, torch.float64])
def test_every_result_at_the_limit_is_counted(source, out):
    values = at_the_end(source, out, COUNT)
    odd, found = int((~values.isfinite()).sum()), too_large(values, out)
    assert odd and (found or torch.finfo(out).max >= torch.finfo(source).max)
    convert = WeightedSum((1.0,), on_deltas=False, agree=True)
    for backend in [*(cpu(*c) for c in CONFIGURATIONS), reference()]:
        counts, [result] = outcome(backend, convert, 1, [values], None, out, "propagate")
        assert counts == (odd, 0, found)
        assert int((~result.isfinite()).sum()) == odd + found


@pytest.mark.parametrize("policy", ["error", "propagate", "base"])
@pytest.mark.parametrize("models", [2, 3, 6])
@pytest.mark.parametrize("kind", KINDS)
def test_backends_count_and_settle_alike(kind, models, policy):
    base, tensors, out = large(kind, models, COUNT)
    for request, outputs in requests(models):
        wanted, written = outcome(reference(), request, outputs, tensors, base, out, policy)
        for configuration in CONFIGURATIONS:
            got, results = outcome(cpu(*configuration), request, outputs, tensors, base, out, policy)
            assert got == wanted, (request, configuration)
            assert_same_tensors(results, written, (request, configuration))


@pytest.mark.parametrize("models", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_counts_what_only_the_result_has(kind, models):
    """By its own results under `propagate`; and under `base` those are the base's elements."""
    base, tensors, out = large(kind, models, COUNT)
    for request, outputs in requests(models):
        operands = [*tensors, *([base] if request.on_deltas else [])]
        sound = torch.stack([t.isfinite() for t in operands]).all(0)
        counts, results = outcome(reference(), request, outputs, tensors, base, out, "propagate")
        bad = [~r.isfinite() for r in results]
        assert counts[:-1] == tuple(int((~t.isfinite()).sum()) for t in operands) + (0,) * (not request.on_deltas)
        assert counts[-1] == sum(int((b & sound).sum()) for b in bad) > 0
        _, settled = outcome(reference(), request, outputs, tensors, base, out, "base")
        if request.on_deltas:
            compute = torch.float64 if torch.float64 in {t.dtype for t in operands} else torch.float32
            deltas = [t.to(compute) - base.to(compute) for t in tensors]  # one that overflows counts as 0
            sound &= torch.stack([d.isfinite() for d in deltas]).all(0)
            for before, after, b in zip(results, settled, bad, strict=True):
                assert_same_bits(after[sound & b], base.to(out)[sound & b])
                assert_same_bits(after[sound & ~b], before[sound & ~b])


# --- merges ---------------------------------------------------------------------------------------------------------


def halves(*values):
    return torch.tensor(values, dtype=torch.float16)


BASE, MODEL = halves(1, 60_000, -2, 3), halves(2, 65_000, -60_000, 3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_error_names_the_tensor_and_what_to_do(backend):
    given = {"base": BASE, "name": "model.norm", "backend": backend, "weight": 2}
    with pytest.raises(wm.CheckpointError) as error:
        wm.merge_tensors([MODEL], "task_arithmetic", **given)
    assert str(error.value) == (
        "tensor 'model.norm': 2 of 4 merged elements are too large for float16; write out_dtype: bfloat16 (or "
        "float32), or set the parameter nonfinite to 'propagate' or 'base'."
    )
    infinite = halves(3, NOT_FINITE, -NOT_FINITE, 3)
    assert_same_bits(wm.merge_tensors([MODEL], "task_arithmetic", nonfinite="propagate", **given), infinite)
    unchanged = halves(3, 60_000, -2, 3)
    assert_same_bits(wm.merge_tensors([MODEL], "task_arithmetic", nonfinite="base", **given), unchanged)
    wider = wm.merge_tensors([MODEL], "task_arithmetic", out_dtype="float32", **given)
    assert wider.tolist() == [3, 69_984, -119_998, 3]


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_a_base_there_is_none_to_take(backend):
    with pytest.raises(wm.CheckpointError, match=r"1 of 4 .* float16; .* nonfinite to 'propagate'\.$"):
        wm.merge_tensors([BASE, BASE], "linear", weight=[0.6, 0.6], normalize=False, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_change_of_dtype_is_counted_and_a_copy_is_not(backend):
    model = torch.tensor([70_000.0, 1.0, NOT_FINITE])
    assert_same_bits(wm.merge_tensors([model], "passthrough", backend=backend, nonfinite="propagate"), model)
    assert_same_bits(wm.merge_tensors([model, model.clone()], "linear", weight=1, backend=backend), model)
    with pytest.raises(wm.CheckpointError, match=r"1 of 2 .* float16"):
        wm.merge_tensors([model[:2]], "passthrough", out_dtype="float16", backend=backend)
    # Of an element that is not finite in an input, the input is at fault.
    with pytest.raises(wm.CheckpointError, match=r"NaN or infinite elements: 1 of 3 in 'model 0'"):
        wm.merge_tensors([model], "passthrough", out_dtype="float16", backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sum_beyond_the_compute_type(backend):
    base = torch.full((3,), -3e38)
    with pytest.raises(wm.CheckpointError, match=r"3 of 3 .* float32; scale the models down, or"):
        wm.merge_tensors([-base], "task_arithmetic", base=base, weight=0.5, backend=backend)
    got = wm.merge_tensors([-base], "task_arithmetic", base=base, weight=0.5, backend=backend, nonfinite="base")
    assert_same_bits(got, base)


@pytest.mark.parametrize("policy", ["error", "base"])
@pytest.mark.usefixtures("registry")
def test_functions_of_whole_tensors(policy):
    @wm.method("mine", base=wm.Base.REFERENCE, passes=1)
    def mine(tensor, p):
        return TensorFunction(lambda tensors, base: tensors[0] * 2)

    if policy == "error":
        with pytest.raises(wm.CheckpointError, match=r"2 of 4 merged elements are too large for float16"):
            wm.merge_tensors([MODEL], "mine", base=BASE)
    else:
        assert_same_bits(wm.merge_tensors([MODEL], "mine", base=BASE, nonfinite="base"), halves(3, 60_000, -2, 3))


def test_a_pool_and_its_sweep():
    with wm.Pool({"w": BASE}, [{"w": MODEL}]) as pool:
        with pytest.raises(wm.CheckpointError, match=r"2 of 4 merged elements are too large"):
            pool.merge("task_arithmetic", weight=2)
        with pytest.raises(wm.CheckpointError, match=r"2 of 8 merged elements are too large"):
            pool.sweep([[0.5], [2]])


def test_running_statistics_refuse_what_they_cannot_hold():
    running = wm.RunningVariance()
    running.update({"w": np.float32([1e30, 1.0])})
    with pytest.raises(wm.CheckpointError, match=r"1 of 4 merged elements are too large for float32\.$"):
        running.update({"w": np.float32([-1e30, 2.0])})
    assert running.count == 1
    mean = wm.RunningMean()
    mean.update({"w": np.float32([1e5, 1.0])})
    with pytest.raises(wm.CheckpointError, match=r"1 of 2 merged elements are too large for float16\.$"):
        mean.mean(dtype="float16")


def test_files(tmp_path):
    from safetensors.torch import save_file

    for name, tensor in (("base", BASE), ("tuned", MODEL)):
        (tmp_path / name).mkdir()
        save_file({"w": tensor}, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text("{}")
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": str(tmp_path / "base"),
        "models": [{"model": str(tmp_path / "tuned"), "parameters": {"weight": 2}}],
    }
    (tmp_path / "recipe.yml").write_text(json.dumps(recipe))
    with pytest.raises(wm.CheckpointError, match=r"'w': 2 of 4 merged elements are too large for float16"):
        wm.merge(tmp_path / "recipe.yml", tmp_path / "out")
    assert not (tmp_path / "out" / "model.safetensors").exists()
    (tmp_path / "recipe.yml").write_text(json.dumps({**recipe, "out_dtype": "float32"}))
    wm.merge(tmp_path / "recipe.yml", tmp_path / "out")
