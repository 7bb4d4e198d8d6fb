"""What tests of merges on emulated GPUs share: models, what the CPU makes of them, and a driver that is left clean."""

import functools
import gc
import os
import threading

import numpy as np
import pytest
from helpers import bf16, contents, run_cli, write_model, write_recipe
from warpmerge.backends.gpu import cuda as backend

emulated = pytest.importorskip("warpmerge._cuda_emulated", reason="built without -DWARPMERGE_CUDA_EMULATION=ON")

CHUNK = 16384
ENVIRONMENT = {**os.environ, "WARPMERGE_CUDA_EMULATION": "1"}
SHARDED = ("--shard-size", "150kB", "--no-sync")
# Two tensors of a layer to a batch, buffers that hold less than one: everything takes turns.
SMALL = {"batch_bytes": 300_000, "buffer_bytes": 1 << 15}


@pytest.fixture(autouse=True)
def emulation(monkeypatch):
    monkeypatch.setenv("WARPMERGE_CUDA_EMULATION", "1")
    gc.collect()
    emulated.reset()
    before, threads = emulated.live(), threading.active_count()
    yield
    emulated.reset()
    gc.collect()
    assert emulated.live() == before  # device memory, page-locked memory, streams, events
    assert threading.active_count() == threads


@pytest.fixture
def made(monkeypatch):
    """The backends that merges have made; `options` is what they are made with besides."""

    class Made(list):
        options = SMALL

    made, real = Made(), backend.create

    @functools.wraps(real)
    def create(**options):
        made.append(real(**options, **made.options))
        return made[-1]

    monkeypatch.setattr(backend, "create", create)
    yield made
    made.clear()


def tensors(seed, layers=4):
    rng = np.random.default_rng(seed)

    def values(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    found = {"embed": bf16(values(300, 200)), "ids": np.arange(7), "flag": np.array(True)}
    for i in range(layers):
        found[f"layers.{i}.wide"] = bf16(values(3 * CHUNK + 100 * i + 5))
        found[f"layers.{i}.small"] = bf16(values(129))
        found[f"layers.{i}.exact"] = values(CHUNK // 2, 2)
        found[f"layers.{i}.half"] = values(500).astype(np.float16)
    found["empty"] = np.zeros((0, 3), np.float32)
    found["frozen"] = np.full(4099, np.nan, np.float32)
    found["double"] = values(777).astype(np.float64)
    found["head"] = found["embed"]
    return found


RECIPES = {
    "linear": {"weight": [0.3, 0.7]},
    "task_arithmetic": {"weight": [0.3, 0.7]},
    "ties": {"weight": [0.3, 0.7], "density": 0.4},
    "dare_ties": {"weight": 0.5, "density": 0.6, "rescale": "l1"},
    "slerp": {"t": 0.4},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(["base", "a", "b"]):
        write_model(folder / name, tensors(seed), shards=seed + 1)
    for method, parameters in RECIPES.items():
        listed = [{"model": str(folder / m), "parameters": {}} for m in "ab"]
        rest = {}
        for name, value in parameters.items():
            if isinstance(value, list):
                for entry, one in zip(listed, value, strict=True):
                    entry["parameters"][name] = one
            else:
                rest[name] = value
        document = {"merge_method": method, "models": listed, "parameters": rest}
        document["base_model"] = str(folder / ("a" if method == "slerp" else "base"))
        write_recipe(folder / f"{method}.yml", document)
    return folder


@pytest.fixture(scope="module")
def expected(models):
    """What the CPU writes."""

    @functools.cache
    def written(method, *options):
        out = models / "expected" / "-".join([method, *options])
        done = run_cli("merge", models / f"{method}.yml", out, "--backend", "cpu", *options)
        assert (done.status, done.stderr) == (0, "")
        return contents(out)

    return written


def merge(models, out, *options, method="ties", device="cuda"):
    return run_cli("merge", models / f"{method}.yml", out, "--device", device, *options)


def ok(*arguments, **options):
    done = merge(*arguments, **options)
    assert (done.status, done.stderr) == (0, ""), done
    return done.stdout


FIXTURES = emulation, made, models, expected  # a test file binds them to these names
