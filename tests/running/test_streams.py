"""Running means and variances: against float64, resumed bit for bit, and unharmed by what goes wrong."""

import json

import numpy as np
import pytest
import torch
import warpmerge as wm
from helpers import bf16, llama, read_model, read_safetensors, write_model, write_safetensors

MAKE = {"mean": wm.RunningMean, "ema": lambda **more: wm.RunningEMA(0.7, **more), "variance": wm.RunningVariance}
SHAPES = {"scalar": (), "empty": (0, 4), "bias": (5,), "weight": (37, 129), "kernel": (3, 4, 5)}


def stream(length=7, dtype=np.float32, seed=0):
    """State dicts that differ in part: means of like numbers are where errors add up."""
    rng = np.random.default_rng(seed)
    first = {name: np.asarray(rng.normal(size=shape), dtype) for name, shape in SHAPES.items()}
    return [
        {n: np.asarray(t + 0.01 * rng.normal(size=t.shape), dtype) for n, t in first.items()}
        | {"steps": np.array([7, 8])}
        for _ in range(length)
    ]


def as_torch(checkpoint, dtype=None):
    made = {name: torch.from_numpy(np.asarray(t)) for name, t in checkpoint.items()}
    return {n: t.to(dtype) if dtype and t.is_floating_point() else t for n, t in made.items()}


def run(made, checkpoints):
    for checkpoint in checkpoints:
        made.update(checkpoint)
    return made


def result(running):
    """All that a state says, as bytes."""
    dicts = [running.mean()] + ([running.variance()] if hasattr(running, "variance") and running.count > 1 else [])
    return [{name: np.asarray(t).tobytes() for name, t in found.items()} for found in dicts]


def expected(kind, checkpoints, name):
    values = np.stack([np.asarray(c[name], np.float64) for c in checkpoints])
    if kind == "ema":
        kept = values[0]
        for value in values[1:]:
            kept = 0.7 * kept + 0.3 * value
        return kept
    return values.mean(axis=0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("kind", MAKE)
def test_against_float64(kind, dtype):
    checkpoints = stream(dtype=dtype)
    running = run(MAKE[kind](), checkpoints)
    state = np.float64 if dtype == np.float64 else np.float32
    mean = running.mean()
    assert list(mean) == [*SHAPES, "steps"] and mean["steps"].tolist() == [7, 8] and running.count == 7
    for name, shape in SHAPES.items():
        assert mean[name].dtype == state and mean[name].shape == shape
        truth = expected(kind, checkpoints, name)
        # Each step rounds thrice, by half an ulp of a mean or less.
        np.testing.assert_allclose(
            mean[name], truth, rtol=0, atol=4 * np.finfo(state).eps * np.abs(truth).max(initial=0)
        )
    if kind == "variance":
        found = running.variance()
        assert found.keys() == SHAPES.keys()
        for name in SHAPES:
            truth = np.var(np.stack([np.asarray(c[name], np.float64) for c in checkpoints]), axis=0, ddof=1)
            assert found[name].dtype == state
            # A deviation is a difference of rounded numbers: 0.01 of them here.
            np.testing.assert_allclose(
                found[name], truth, rtol=1e-3 * np.finfo(state).eps / 1e-7, atol=1e-7 * truth.max(initial=0)
            )


def test_a_long_stream_of_bf16_does_not_stick():
    """In bfloat16 the steps (1 - decay) (x - e) would vanish; the state in float32 follows."""
    checkpoints = [{"w": torch.full((64,), 1.0, dtype=torch.bfloat16)}] + [
        {"w": torch.full((64,), 1.0 + 2**-7, dtype=torch.bfloat16)}
    ] * 2000
    ema, mean = run(wm.RunningEMA(0.999), checkpoints), run(wm.RunningMean(), checkpoints)
    assert ema.mean()["w"][0] == pytest.approx(1 + 2**-7 * (1 - 0.999**2000), abs=1e-4 * 2**-7 * 100)
    assert mean.mean()["w"][0] == pytest.approx(1 + 2**-7 * 2000 / 2001, abs=2**-7 * 1e-2)
    assert ema.mean(dtype="bfloat16")["w"].dtype == torch.bfloat16


@pytest.mark.parametrize("kind", MAKE)
def test_equal_checkpoints_are_their_own_mean(kind):
    checkpoint = stream(1)[0] | {"zeros": np.array([-0.0, 0.0, 1e-45, 3e38], np.float32)}
    running = run(MAKE[kind](), [checkpoint] * 9)
    for name, tensor in checkpoint.items():
        assert np.asarray(running.mean()[name]).tobytes() == np.asarray(tensor).tobytes()
    if kind == "variance":
        assert all(not np.any(t) for t in running.variance().values())


def test_the_variance_has_the_mean_of_the_mean():
    checkpoints = stream(9)
    assert result(run(wm.RunningVariance(), checkpoints))[0] == result(run(wm.RunningMean(), checkpoints))[0]


def test_the_ema_is_the_method():
    checkpoints = stream(5)
    merged = wm.merge_state_dicts(checkpoints, "ema", decay=0.7)
    for name, tensor in run(wm.RunningEMA(0.7), checkpoints).mean().items():
        np.testing.assert_allclose(tensor, merged[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", MAKE)
def test_backends_and_kinds_of_tensors_give_the_same_bits(kind):
    checkpoints = stream()
    reference = result(run(MAKE[kind](backend="torch"), checkpoints))
    assert result(run(MAKE[kind](), checkpoints)) == reference
    made = run(MAKE[kind](), map(as_torch, checkpoints))
    assert all(isinstance(t, torch.Tensor) for t in made.mean().values())
    assert result(made) == reference
    mixed = run(MAKE[kind](), [as_torch(c) if i % 2 else c for i, c in enumerate(checkpoints)])
    assert result(mixed) == reference


@pytest.mark.parametrize("kind", MAKE)
def test_saved_and_resumed_bit_for_bit(kind, tmp_path):
    checkpoints = stream()
    first = run(MAKE[kind](), checkpoints[:4])
    first.save(tmp_path / "state.safetensors")
    resumed = type(first).load(tmp_path / "state.safetensors")
    assert resumed.count == 4 and repr(resumed) == repr(first)
    assert result(resumed) == result(first)
    assert result(run(resumed, checkpoints[4:])) == result(run(MAKE[kind](), checkpoints))
    assert [p.name for p in tmp_path.iterdir()] == ["state.safetensors"]
    assert result(type(first).load(tmp_path / "state.safetensors")) == result(first)


def test_a_saved_mean_is_a_safetensors_file(tmp_path):
    from safetensors.numpy import load_file

    running = run(wm.RunningMean(), stream(3))
    running.save(tmp_path / "state.safetensors")
    found = load_file(tmp_path / "state.safetensors")
    assert {n: t.tobytes() for n, t in found.items()} == {n: np.asarray(t).tobytes() for n, t in running.mean().items()}


@pytest.mark.parametrize("kind", MAKE)
def test_files_give_the_bits_of_tensors(kind, tmp_path):
    paths = [write_model(tmp_path / str(seed), llama(seed), shards=1 + seed % 2) for seed in range(4)]
    write_safetensors(tmp_path / "last.safetensors", llama(9))
    reference = run(MAKE[kind](), [llama(seed) for seed in (*range(4), 9)])
    running = run(MAKE[kind](), [*paths, str(tmp_path / "last.safetensors")])
    assert all(isinstance(t, torch.Tensor) for t in running.mean().values())
    assert result(running) == result(reference)


def test_writing_models(tmp_path):
    files = {"tokenizer.json": "{}"}
    paths = [write_model(tmp_path / str(i), {"w": bf16([i, 2 * i, 1])}, files=files) for i in range(3)]
    running = run(wm.RunningVariance(), paths)
    running.write(tmp_path / "out", dtype="bfloat16")
    assert read_model(tmp_path / "out") == {"w": bf16([1, 2, 1])}
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    running.write_variance(tmp_path / "variance.safetensors")
    assert np.frombuffer(read_safetensors(tmp_path / "variance.safetensors")["w"][2], "<f4").tolist() == [1, 4, 0]
    for path in (tmp_path / "out", tmp_path / "0"):
        with pytest.raises(wm.OutputError, match=r"not empty|also an input"):
            running.write(path)
    again = run(wm.RunningMean(), [{"w": torch.ones(3)}])
    again.write(tmp_path / "plain")
    assert [p.name for p in (tmp_path / "plain").iterdir()] == ["model.safetensors"]
    again.write(tmp_path / "like", like=paths[0])
    assert (tmp_path / "like" / "tokenizer.json").exists()


def test_a_float64_checkpoint_widens_the_state():
    round_to, fp64 = stream(2), stream(3, np.float64)[2]
    running = run(wm.RunningMean(), [*round_to, fp64])
    assert running.mean()["weight"].dtype == np.float64
    truth = np.mean([np.asarray(c["weight"], np.float64) for c in (*round_to, fp64)], axis=0)
    np.testing.assert_allclose(running.mean()["weight"], truth, rtol=0, atol=1e-6)


def test_results_are_not_the_state():
    running = run(wm.RunningMean(), stream(2))
    before = result(running)
    for tensor in running.mean().values():
        tensor[...] = 0
    assert result(running) == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
@pytest.mark.parametrize("kind", MAKE)
def test_cuda_tensors_stay_where_they_are(kind):
    checkpoints = stream()
    running = run(MAKE[kind](), [{n: t.cuda() for n, t in as_torch(c).items()} for c in checkpoints])
    assert all(t.is_cuda for t in running.mean().values())
    on_host = {n: t.cpu().numpy().tobytes() for n, t in running.mean().items()}
    assert on_host == result(run(MAKE[kind](), checkpoints))[0]
