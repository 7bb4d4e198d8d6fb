"""On a GPU: recipes and their files, in device memory as a whole and in tiles, on one device and on several."""

import numpy as np
import pytest
import torch
from helpers import bf16, run_cli, write_model, write_recipe
from test_gpu import TIES, backend, check, tiny_models

__all__ = ["backend"]  # a fixture
pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def recipes(tmp_path_factory):
    """A base and three models in files of several shards, with a recipe for each method."""
    folder = tmp_path_factory.mktemp("models")
    for k, name in enumerate(["base", "a", "b", "c"]):
        rng = np.random.default_rng(0)
        tensors = {}
        for i, shape in enumerate([(300, 400), (67,), (1,), (16384 * 3,), (513, 129)]):
            values = rng.standard_normal(shape) * 0.02
            tuned = np.random.default_rng(100 * i + k).standard_normal(shape) * (2e-3 if k else 0)
            tensors[f"layer.{i}.weight"] = bf16(values + tuned)
        write_model(folder / name, tensors, shards=2)
    models = [{"model": str(folder / n), "parameters": {"weight": w}} for n, w in (("a", 0.5), ("b", 0.3), ("c", 0.2))]
    made = {}
    for method in ("linear", "ties", "dare_ties"):
        document = {"merge_method": method, "models": models}
        if method != "linear":
            document |= {"base_model": str(folder / "base"), "parameters": {"density": 0.5}}
        made[method] = write_recipe(folder / f"{method}.yml", document)
    return made


def weights_in(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def merged(recipe, out, *options):
    done = run_cli("merge", recipe, out, "--quiet", *options)
    assert done.status == 0, done.stderr
    return weights_in(out)


@pytest.mark.parametrize("memory", [None, "3MB"], ids=["resident", "tiled"])
@pytest.mark.parametrize("method", ["linear", "ties", "dare_ties"])
def test_recipe(backend, method, memory, recipes, tmp_path):
    options = [] if memory is None else ["--device-memory", memory]
    got = merged(recipes[method], tmp_path / "gpu", "--backend", backend, *options)
    assert got == merged(recipes[method], tmp_path / "cpu", "--backend", "cpu")


def test_too_little_device_memory(backend, recipes, tmp_path):
    done = run_cli(
        "merge", recipes["ties"], tmp_path / "out", "--quiet", "--backend", backend, "--device-memory", "1KB"
    )
    assert done.status == 1
    assert "device memory" in done.stderr
    assert not weights_in(tmp_path / "out")


def test_unknown_device(backend, recipes, tmp_path):
    count = torch.cuda.device_count()
    done = run_cli("merge", recipes["linear"], tmp_path / "out", "--backend", backend, "--device", f"cuda:{count}")
    assert done.status == 2
    assert f"cuda:{count}" in done.stderr


def test_several_devices(backend, recipes, tmp_path):
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    got = merged(recipes["ties"], tmp_path / "gpu", "--backend", backend, "--device", "cuda:all")
    assert got == merged(recipes["ties"], tmp_path / "cpu", "--backend", "cpu")
    base, models = tiny_models()
    check(backend, "ties", models, base, place=lambda t: t.to("cuda:1"), **TIES)
