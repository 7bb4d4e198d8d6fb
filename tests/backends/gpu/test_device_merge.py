"""Whole merges on emulated GPUs: the files of the CPU, byte for byte."""

import json
import re

import numpy as np
import pytest
import warpmerge as wm
from device_helpers import CHUNK, FIXTURES, RECIPES, SHARDED, emulated, merge, ok
from helpers import array, contents, read_model, run_cli, write_model

emulation, made, models, expected = FIXTURES


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("method", RECIPES)
def test_the_same_files(models, expected, made, tmp_path, method, late):
    """Manifest and model card included: nothing says where a merge was computed."""
    emulated.defer(late)
    for number, options in enumerate([(), SHARDED]):
        ok(models, tmp_path / f"{number}", *options, method=method)
        assert contents(tmp_path / f"{number}") == expected(method, *options)
    assert [b.name for b in made] == ["cuda", "cuda"]
    assert wm.verify(tmp_path / "0").problems == ()


def test_the_default_sizes(models, expected, tmp_path):
    """Batches and buffers as users have them."""
    ok(models, tmp_path / "out", *SHARDED)
    assert contents(tmp_path / "out") == expected("ties", *SHARDED)


def test_integers_empty_frozen_and_shared_tensors(models, made, tmp_path):
    ok(models, tmp_path / "out")
    got, base = read_model(tmp_path / "out"), read_model(models / "base")
    for name in ["ids", "flag", "empty", "frozen"]:
        assert got[name] == base[name]
    assert got["head"] == got["embed"] != base["embed"]
    assert not np.array_equal(array(got["double"]), array(base["double"]))


@pytest.mark.parametrize("device", ["cuda:0,1", "cuda:1,0", "cuda:all"])
def test_two_devices(models, expected, made, tmp_path, device):
    emulated.set_device_count(2)
    made.options = {"batch_bytes": 40_000, "buffer_bytes": 1 << 15}
    for method in ("ties", "linear"):
        ok(models, tmp_path / method, *SHARDED, method=method, device=device)
        assert contents(tmp_path / method) == expected(method, *SHARDED)
    for group in made:
        assert len(group.members) == 2
        assert all(member.runtime.device.launches > 0 for member in group.members)
        largest = 2 * 3 * 2 * (3 * CHUNK + 400)
        assert abs(group.given[0] - group.given[1]) <= largest + 40_000


def test_the_second_device_alone(models, expected, made, tmp_path):
    emulated.set_device_count(2)
    report = json.loads(ok(models, tmp_path / "out", "--json", device="cuda:1"))
    assert (report["backend"], report["device"]) == ("cuda", "cuda:1")
    assert made[0].runtime.name == "cuda:1"
    assert contents(tmp_path / "out") == expected("ties")


# --- the command line -----------------------------------------------------------------------------------------------


def test_info_lists_the_devices():
    emulated.set_device_count(2)
    emulated.limit_memory(8_000_000_000)
    done = run_cli("info")
    assert (done.status, done.stderr) == (0, "")
    assert re.search(r"^cuda +yes", done.stdout, re.MULTILINE)
    for number in range(2):
        line = f"cuda:{number}  emulated device {number}, compute capability 9.0, 8.00 GB (8.00 GB free)"
        assert line in done.stdout
    assert "merges use: cuda" in done.stdout
    emulated.set_device_count(0)
    done = run_cli("info")
    assert (done.status, "there is no NVIDIA GPU" in done.stdout, "merges use: cpu" in done.stdout) == (0, True, True)


def test_plan_and_reports(models, made, tmp_path):
    recipe = models / "ties.yml"
    plan = json.loads(run_cli("plan", recipe, "--json").stdout)
    assert plan["backend"].startswith("cuda on cuda, ")
    assert "cpu on cpu" in run_cli("plan", recipe, "--device", "cpu").stdout
    dry = json.loads(run_cli("merge", recipe, tmp_path / "out", "--json", "--dry-run").stdout)
    assert not (tmp_path / "out").exists() and not made
    report = json.loads(run_cli("merge", recipe, tmp_path / "out", "--json", "--device-memory", "1GB").stdout)
    for key in ("bytes_read", "bytes_written", "memory", "shards"):
        assert plan[key] == report[key] == dry[key]
    assert (report["backend"], report["device"]) == ("cuda", "cuda")
    cpu = json.loads(run_cli("plan", recipe, "--json", "--device", "cpu").stdout)
    assert cpu["bytes_read"] == plan["bytes_read"]


@pytest.mark.parametrize("command", ["plan", "merge"])
@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--device", "gpu"], "unknown device 'gpu'"),
        (["--device", "cpu:1"], "unknown device 'cpu:1'"),
        (["--device", "cpu", "--backend", "cuda"], "backend 'cuda' computes on cuda, not on cpu;"),
        (["--device", "cuda", "--backend", "cpu"], "backend 'cpu' computes on cpu, not on cuda;"),
        (["--memory", "1GB"], "memory is for merges on the CPU; on a GPU use device_memory."),
        (["--device", "cpu", "--device-memory", "1GB"], "device_memory is for GPUs, but backend 'cpu'"),
        (["--device-memory", "much"], "device_memory: 'much' is not a size"),
    ],
)
def test_wrong_usage(models, tmp_path, command, options, part):
    out = [tmp_path / "out"] if command == "merge" else []
    done = run_cli(command, models / "ties.yml", *out, *options)
    assert (done.status, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and part in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("device", "part"),
    [
        ("cuda:9", "there is no device cuda:9; this machine has cuda:0."),
        ("cuda:0,1", "there is no device cuda:1; this machine has cuda:0."),
        ("cuda:0,0", "device 'cuda:0,0' names a device twice."),
        ("cuda:first", "device 'cuda:first' is not one of cuda, cuda:N, cuda:N,M and cuda:all."),
        ("cuda:-1", "there is no device cuda:-1"),
    ],
)
def test_devices_that_there_are_not(models, tmp_path, device, part):
    done = merge(models, tmp_path / "out", device=device)
    assert (done.status, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and part in done.stderr
    assert not (tmp_path / "out").exists()


def test_without_a_device(models, expected, tmp_path):
    emulated.set_device_count(0)
    for options in (["--device", "cuda"], ["--backend", "cuda"], ["--device", "cuda:all"]):
        done = run_cli("merge", models / "ties.yml", tmp_path / "out", *options)
        assert (done.status, "there is no NVIDIA GPU" in done.stderr) == (2, True)
    assert run_cli("merge", models / "ties.yml", tmp_path / "out").status == 0
    assert contents(tmp_path / "out") == expected("ties")


def test_a_model_of_thousands_of_tensors(made, tmp_path):
    made.options = {}
    for seed, name in enumerate(["base", "a", "b"]):
        rng = np.random.default_rng(seed)
        write_model(tmp_path / name, {f"{i}": rng.standard_normal(i % 40).astype(np.float32) for i in range(1500)})
    recipe = {
        "merge_method": "dare_ties",
        "base_model": str(tmp_path / "base"),
        "models": [str(tmp_path / "a"), str(tmp_path / "b")],
        "parameters": {"weight": 0.5, "density": 0.3},
    }
    for device in ("cpu", "cuda"):
        wm.merge(recipe, tmp_path / device, device=device, sync=False)
    assert contents(tmp_path / "cuda") == contents(tmp_path / "cpu")
