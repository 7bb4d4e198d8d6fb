"""Merges on emulated GPUs that go wrong: little memory, bad files, interruptions; nothing unfinished looks complete."""

import os
import re
import signal
import threading

import numpy as np
import pytest
import warpmerge as wm
from device_helpers import CHUNK, ENVIRONMENT, FIXTURES, RECIPES, SHARDED, emulated, merge, ok, tensors
from helpers import (
    INTERRUPTED,
    SINGLE,
    contents,
    looks_complete,
    read_model,
    run_cli,
    run_process,
    write_model,
    write_recipe,
)
from warpmerge import _core
from warpmerge.backends.gpu.backend import DeviceBackend
from warpmerge.errors import CheckpointError, DeviceError, OutputError
from warpmerge.models.staging import STAGING

emulation, made, models, expected = FIXTURES

# --- memory ---------------------------------------------------------------------------------------------------------


class Lowest:
    """Called with each progress: remembers the least memory that was free."""

    def __init__(self):
        self.free = 2**62

    def __call__(self, *_):
        self.free = min(self.free, emulated.Device(0).memory()[0])


@pytest.mark.parametrize("method", ["ties", "dare_ties", "linear", "slerp"])
def test_little_device_memory(models, expected, made, tmp_path, method):
    """Tensors in tiles, also two passes over them."""
    ok(models, tmp_path / "out", "--device-memory", "4MB", method=method)
    assert contents(tmp_path / "out") == expected(method)


@pytest.mark.parametrize("method", ["ties", "linear"])
def test_device_memory_is_a_bound(models, expected, made, tmp_path, method):
    """On what operands take; tables and counters of small merges have a least size."""
    for budget in (20_000_000, 60_000_000):
        lowest = Lowest()
        total = emulated.Device(0).memory()[1]
        wm.merge(models / f"{method}.yml", tmp_path / f"{budget}", device="cuda", device_memory=budget, progress=lowest)
        assert contents(tmp_path / f"{budget}") == expected(method)
        assert total - lowest.free <= budget


def test_too_little_device_memory_for_one_tile(models, made, tmp_path):
    out = tmp_path / "out"
    failed = merge(models, out, "--device-memory", "100kB")
    assert (failed.status, failed.stdout) == (1, "")
    found = re.fullmatch(
        r"error: tensor '.*' needs (.*) of device memory to be worked on in tiles; .* may be used\. "
        r"Raise --device-memory, or use --device cpu\.\n",
        failed.stderr,
    )
    assert found and not looks_complete(out)
    for _ in range(20):  # as often as a larger tensor is found
        failed = merge(models, out, "--device-memory", found[1], "--resume")
        if failed.status == 0:
            break
        found = re.search(r"needs (.*) of device memory", failed.stderr)
    assert failed.status == 0


def test_a_device_that_is_nearly_full(models, expected, made, tmp_path):
    """What is free is less than what all batches would like to have."""
    emulated.limit_memory(24_000_000)
    ok(models, tmp_path / "out")
    assert contents(tmp_path / "out") == expected("ties")


class After:
    """A progress that does something once, when so many bytes were read."""

    def __init__(self, fraction, action):
        self.fraction, self.action, self.done = fraction, action, False

    def __call__(self, read, total):
        if not self.done and read >= self.fraction * total:
            self.done = True
            self.action()


@pytest.mark.parametrize("method", ["ties", "linear"])
@pytest.mark.parametrize("failures", [1, 2])
def test_one_shortage_of_memory_is_survived(models, expected, made, tmp_path, method, failures):
    """At the first allocations: the batch is tried again in tiles; a second shortage is one too many."""
    emulated.fail_next_allocations(failures)
    recipe, out = models / f"{method}.yml", tmp_path / "out"
    if failures == 1:
        wm.merge(recipe, out, device="cuda")
    else:
        with pytest.raises(DeviceError, match=r"GPU 0: cannot allocate .* --device-memory .* --device cpu"):
            wm.merge(recipe, out, device="cuda")
        assert not looks_complete(out)
        wm.merge(recipe, out, device="cuda", resume=True)
    assert contents(out) == expected(method)


@pytest.fixture(scope="module")
def growing(tmp_path_factory):
    """Each tensor is larger than all before, so that every batch has to allocate; a few small ones are last."""
    folder = tmp_path_factory.mktemp("growing")
    for seed, name in enumerate(["base", "a", "b"]):
        rng = np.random.default_rng(seed)
        sizes = [*(CHUNK * (i + 1) // 2 for i in range(16)), 77, 3]
        values = {f"{i:02}": rng.standard_normal(n).astype(np.float32) for i, n in enumerate(sizes)}
        write_model(folder / name, values)
    for method in ("ties", "linear"):
        document = {"merge_method": method, "models": [str(folder / m) for m in "ab"], "parameters": RECIPES[method]}
        document["parameters"] = {"weight": 0.5} | ({"density": 0.4} if method == "ties" else {})
        document["base_model"] = str(folder / "base")
        write_recipe(folder / f"{method}.yml", document)
        wm.merge(folder / f"{method}.yml", folder / f"expected-{method}", backend="cpu", shard_size="600kB")
    return folder


@pytest.mark.parametrize("method", ["ties", "linear"])
def test_a_shortage_in_the_middle(growing, made, tmp_path, method):
    made.options = {"batch_bytes": 1, "buffer_bytes": 1 << 16}
    shortage = After(0.1, lambda: emulated.fail_next_allocations(1))
    wm.merge(growing / f"{method}.yml", tmp_path / "out", device="cuda", shard_size="600kB", progress=shortage)
    assert shortage.done and made[0]._halved
    assert contents(tmp_path / "out") == contents(growing / f"expected-{method}")


@pytest.mark.parametrize("tensor", [0, 5, 16, 17])
def test_a_shortage_at_any_tensor(growing, made, tmp_path, tensor):
    """Also at a small one, which says little about what the large ones may have."""
    made.options = {"batch_bytes": 1, "buffer_bytes": 1 << 16}
    order = [tensor, *(i for i in range(18) if i != tensor)]
    for name in ["base", "a", "b"]:
        found = read_model(growing / name)
        write_model(tmp_path / name, {f"{i:02}": found[f"{i:02}"] for i in order})
    recipe = {
        "merge_method": "ties",
        "base_model": str(tmp_path / "base"),
        "models": [str(tmp_path / "a"), str(tmp_path / "b")],
        "parameters": {"weight": 0.5, "density": 0.4},
    }
    emulated.fail_next_allocations(1)
    wm.merge(recipe, tmp_path / "out", device="cuda")
    assert made[0]._halved
    assert read_model(tmp_path / "out") == read_model(growing / "expected-ties")


@pytest.mark.parametrize("method", ["ties", "linear"])
def test_a_lasting_shortage(growing, made, tmp_path, method):
    made.options = {"batch_bytes": 1, "buffer_bytes": 1 << 16}
    shortage = After(0.2, lambda: emulated.fail_next_allocations(10**6))
    recipe, out = growing / f"{method}.yml", tmp_path / "out"
    with pytest.raises(DeviceError, match=r"^GPU 0: cannot allocate .* --device-memory .* --device cpu"):
        wm.merge(recipe, out, device="cuda", shard_size="600kB", progress=shortage)
    assert not looks_complete(out)
    emulated.reset()
    assert wm.merge(recipe, out, device="cuda", shard_size="600kB", resume=True).resumed_shards > 0
    assert contents(out) == contents(growing / f"expected-{method}")


@pytest.mark.parametrize("failures", [1, 2, 3, 10**6])
def test_a_shortage_of_page_locked_memory(models, expected, made, tmp_path, failures):
    """Ends in success or in an error, and does end."""
    emulated.fail_next_allocations(0, pinned=failures)
    failed = merge(models, tmp_path / "out")
    if failed.status:
        assert failures > 1 and "cannot allocate" in failed.stderr and "page-locked" in failed.stderr
        assert not looks_complete(tmp_path / "out")
        emulated.reset()
        ok(models, tmp_path / "out", "--resume")
    assert contents(tmp_path / "out") == expected("ties")


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", ["8GB", "4MB"])
@pytest.mark.parametrize("method", ["linear", "ties"])
def test_an_input_that_is_cut_short_during_the_merge(tmp_path, made, monkeypatch, method, memory):
    for name in ["base", "a", "b"]:
        write_model(tmp_path / name, {f"{i}": np.ones(1 << 17, np.float32) for i in range(4)})
    parameters = {"weight": 1} | ({"density": 0.5} if method == "ties" else {})
    models = [str(tmp_path / m) for m in "ab"]
    recipe = {"merge_method": method, "base_model": str(tmp_path / "base"), "models": models, "parameters": parameters}
    real = DeviceBackend.launch

    def launch(self, work):
        os.truncate(tmp_path / "b" / SINGLE, 1_200_000)
        return real(self, work)

    monkeypatch.setattr(DeviceBackend, "launch", launch)
    with pytest.raises(CheckpointError, match=r"b/model\.safetensors changed while it was being read"):
        wm.merge(recipe, tmp_path / "out", device="cuda", device_memory=memory)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("memory", ["8GB", "4MB"])
def test_a_nan_late_in_the_model(models, made, tmp_path, memory):
    spoiled = tensors(2)
    code, shape, data = spoiled["layers.3.wide"]
    spoiled["layers.3.wide"] = code, shape, data[:-2] + b"\xff\x7f"
    write_model(tmp_path / "b", spoiled)
    recipe = {
        "merge_method": "ties",
        "base_model": str(models / "base"),
        "models": [str(models / "a"), str(tmp_path / "b")],
        "parameters": {"weight": 0.5, "density": 0.4},
    }
    write_recipe(tmp_path / "r.yml", recipe)
    for device in (["cpu"], ["cuda", "--device-memory", memory]):
        failed = run_cli("merge", tmp_path / "r.yml", tmp_path / "out", "--device", *device)
        assert (failed.status, failed.stdout) == (1, "")
        assert "'layers.3.wide'" in failed.stderr and f"1 of {3 * CHUNK + 305:,} in '{tmp_path / 'b'}'" in failed.stderr
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ["linear", "ties"])
def test_a_file_that_may_not_grow(models, method, tmp_path):
    """As on a full disk, found when a result is written and not when space is reserved."""
    setup = (
        "import os, resource, signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "os.posix_fallocate = lambda *a: None\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))\n"
    )
    out = tmp_path / "out"
    failed = run_process(
        "merge", models / f"{method}.yml", out, "--device", "cuda", "--no-sync", setup=setup, env=ENVIRONMENT
    )
    assert (failed.status, failed.stdout) == (1, "")
    assert failed.stderr.startswith("error: ") and failed.stderr.count("\n") == 1 and str(out) in failed.stderr
    assert not looks_complete(out)


@pytest.mark.parametrize("method", ["linear", "ties"])
def test_a_sink_that_cannot_be_written(models, expected, made, tmp_path, monkeypatch, method):
    real = DeviceBackend.launch
    calls = []

    def launch(self, work):
        calls.append(len(work))
        if len(calls) == 4:
            for task, _ in work:
                full = _core.File(os.open("/dev/full", os.O_WRONLY))
                task.sinks = [type(s)(full, 0) for s in task.sinks]
        return real(self, work)

    with monkeypatch.context() as patch:
        patch.setattr(DeviceBackend, "launch", launch)
        with pytest.raises(OutputError, match="no space left"):
            wm.merge(models / f"{method}.yml", tmp_path / "out", device="cuda")
    assert not looks_complete(tmp_path / "out")
    wm.merge(models / f"{method}.yml", tmp_path / "out", device="cuda", resume=True)
    assert contents(tmp_path / "out") == expected(method)


# --- interruptions --------------------------------------------------------------------------------------------------


def interrupt():
    raise KeyboardInterrupt


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.7, 0.97])
@pytest.mark.parametrize("method", ["linear", "ties"])
def test_interrupted_and_resumed(models, expected, made, tmp_path, method, fraction):
    arguments = models / f"{method}.yml", tmp_path / "out"
    options = {"device": "cuda", "shard_size": "150kB", "sync": False}
    with pytest.raises(KeyboardInterrupt, match=r"interrupted; nothing was published\."):
        wm.merge(*arguments, **options, progress=After(fraction, interrupt))
    assert not looks_complete(tmp_path / "out")
    kept = len(list((tmp_path / "out" / STAGING).glob("*.safetensors"))) if (tmp_path / "out").exists() else 0
    report = wm.merge(*arguments, **options, resume=True)
    assert report.resumed_shards == kept and (fraction < 0.9 or kept > 0)
    assert contents(tmp_path / "out") == expected(method, *SHARDED)


def test_shards_of_the_cpu_are_resumed_on_a_device(models, expected, made, tmp_path):
    options = {"shard_size": "150kB", "sync": False}
    for first, second in [("cpu", "cuda"), ("cuda", "cpu")]:
        out = tmp_path / first
        with pytest.raises(KeyboardInterrupt):
            wm.merge(models / "ties.yml", out, device=first, **options, progress=After(0.9, interrupt))
        assert wm.merge(models / "ties.yml", out, device=second, **options, resume=True).resumed_shards > 0
        assert contents(out) == expected("ties", *SHARDED)


@pytest.mark.parametrize(
    "place", ["warpmerge.backends.gpu.backend.DeviceTicket.wait", "warpmerge.backends.gpu.backend.wait_for"]
)
@pytest.mark.parametrize("call", [1, 4])
def test_interrupted_where_the_device_is_waited_for(models, expected, made, tmp_path, monkeypatch, place, call):
    from warpmerge.backends.gpu import backend as module

    owner, name = (module.DeviceTicket, "wait") if place.endswith("wait") else (module, "wait_for")
    real, calls = getattr(owner, name), []

    def wrapped(*arguments):
        calls.append(name)
        if len(calls) == call:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, wrapped)
        stopped = merge(models, tmp_path / "out", *SHARDED)
    if len(calls) < call:
        assert stopped.status == 0
        return
    assert (stopped.status, "interrupted; nothing was published." in stopped.stderr) == (130, True)
    ok(models, tmp_path / "out", *SHARDED, "--resume")
    assert contents(tmp_path / "out") == expected("ties", *SHARDED)


def test_a_real_interrupt(models, expected, tmp_path):
    arguments = "merge", models / "ties.yml", tmp_path / "out", "--device", "cuda", *SHARDED
    stopped = run_process(*arguments, setup=INTERRUPTED, env=ENVIRONMENT)
    assert (stopped.status, stopped.stdout) == (128 + signal.SIGINT, "")
    assert "--resume keeps them" in stopped.stderr and "Traceback" not in stopped.stderr
    assert run_process(*arguments, "--resume", env=ENVIRONMENT).status == 0
    assert contents(tmp_path / "out") == expected("ties", *SHARDED)


def test_merges_at_the_same_time(models, expected, made, tmp_path):
    """Each has a backend of its own; one of them fails."""
    failures = []

    def work(number, method):
        try:
            progress = After(0.4, interrupt) if method == "linear" else None
            wm.merge(models / f"{method}.yml", tmp_path / f"{number}", device="cuda", progress=progress)
        except BaseException as error:
            failures.append((method, type(error)))

    chosen = ["ties", "linear", "dare_ties", "slerp"]
    threads = [threading.Thread(target=work, args=(n, m)) for n, m in enumerate(chosen)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == [("linear", KeyboardInterrupt)]
    for number, method in enumerate(chosen):
        if method != "linear":
            assert contents(tmp_path / f"{number}") == expected(method)
