"""Auxiliary tensors on the emulated device: further inputs of a kernel, or matrices for a function."""

import pytest
from device_modes import FIXTURES, MODES, device
from helpers import array, read_model, run_cli, write_model, write_recipe
from kernel_helpers import assert_same_bits, cpu, family, run
from test_auxiliary_methods import FISHER, companion_task, grams, informations, inputs

(emulation,) = FIXTURES


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", FISHER)
def test_fisher(mode, case):
    def tasks():
        shaped = ((family("bf16", 3, shape)[1], informations(3, shape)) for shape in (7, 40_000))
        return [companion_task("fisher", *operands, **FISHER[case]) for operands in shaped]

    made = tasks()
    with device(mode, [t for t, _ in made]) as backend:
        got = run(backend, *made)
    for one, other in zip(got, run(cpu(), *tasks()), strict=True):
        assert_same_bits(one, other)


def test_grams_beside_weights_without_one(tmp_path, monkeypatch):
    """Files: matrices go to torch, the others to the device's kernels."""
    monkeypatch.chdir(tmp_path)
    models = []
    for k, xs in enumerate(inputs(2, 12, 50)):
        _, tensors = family("fp32", 2, (9, 12))
        write_model(tmp_path / f"m{k}", {"norm": tensors[k][0].numpy(), "w": tensors[k].numpy()})
        write_model(tmp_path / f"g{k}", {"w": grams([xs])[0].numpy()}, config=None)
        models.append({"model": f"m{k}", "parameters": {"gram": f"g{k}"}})
    recipe = write_recipe(tmp_path / "r.yml", {"merge_method": "regmean", "models": models})
    for name, options in {"cpu": ("--device", "cpu"), "cuda": ("--device", "cuda")}.items():
        done = run_cli("merge", recipe, name, "--no-sync", *options)
        assert (done.status, done.stderr) == (0, "")
    first, second = read_model(tmp_path / "cpu"), read_model(tmp_path / "cuda")
    assert first["norm"] == second["norm"]
    assert abs(array(first["w"]) - array(second["w"])).max() < 1e-7
