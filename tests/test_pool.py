"""Pools: models held in one place and merged again and again give what merging them once gives."""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import warpmerge as wm
from helpers import write_model
from odd_arrays import TORCH_REFUSED
from pool_models import FIXTURES, MERGES, ROWS, WEIGHTS, assert_equal, save, untied
from warpmerge.errors import CheckpointError, MergeError, UsageError

base, models, directories, pool = FIXTURES


@pytest.mark.parametrize(("method", "parameters"), MERGES)
def test_merges(pool, base, models, method, parameters, request):
    """Files have no shared tensors: there, each name draws its own random numbers."""
    tied = request.node.callspec.params["pool"] == "states"
    origin, others = (base, models) if tied else (untied(base), [untied(m) for m in models])
    wanted = wm.merge_state_dicts(others, method, base=origin, backend="torch", **parameters)
    for _ in range(2):
        assert_equal(pool.merge(method, **parameters), wanted, method)


@pytest.mark.parametrize("dtype", ["float32", torch.float16, "bfloat16"])
def test_other_dtypes(pool, base, models, dtype):
    wanted = wm.merge_state_dicts(models, "ties", base=base, weight=1, density=0.5, out_dtype=dtype)
    assert_equal(pool.merge("ties", weight=1, density=0.5, out_dtype=dtype), wanted)
    assert_equal(
        pool.sweep([WEIGHTS], out_dtype=dtype)[0],
        wm.merge_state_dicts(models, "task_arithmetic", base=base, weight=WEIGHTS, out_dtype=dtype),
    )


def test_sweeps(pool, base, models):
    """Each row is a task arithmetic of its own; tensors that are not merged are shared."""
    swept = pool.sweep(ROWS)
    assert len(swept) == len(ROWS)
    for row, got in zip(ROWS, swept, strict=True):
        assert_equal(got, wm.merge_state_dicts(models, "task_arithmetic", base=base, weight=row), row)
        assert got["ids"] is swept[0]["ids"]
    assert swept[0]["embed"].data_ptr() != swept[1]["embed"].data_ptr()
    assert_equal(swept[3], base)
    assert pool.sweep([]) == []


def test_many_rows_and_one_model(base, models):
    rows = [[i / 40] for i in range(40)]
    with wm.Pool(base, models[:1], backend="cpu") as pool:
        for row, got in zip(rows, pool.sweep(rows), strict=True):
            assert_equal(got, wm.merge_state_dicts(models[:1], "task_arithmetic", base=base, weight=row), row)


def test_a_sweep_without_a_base(models):
    with wm.Pool(None, models, backend="cpu") as pool:
        for row, got in zip(ROWS[:3], pool.sweep(ROWS[:3]), strict=True):
            assert_equal(got, wm.merge_state_dicts(models, "linear", weight=row, normalize=False), row)
        assert_equal(pool.merge("linear", weight=WEIGHTS), wm.merge_state_dicts(models, "linear", weight=WEIGHTS))
        with pytest.raises(UsageError, match="method 'ties' needs a base, and this pool has none"):
            pool.merge("ties", weight=1, density=0.5)


def test_slerp_starts_at_the_base(base, models):
    with wm.Pool(base, models[:1], backend="cpu") as pool:
        assert_equal(pool.merge("slerp", t=0.3), wm.merge_state_dicts(models[:1], "slerp", base=base, t=0.3))
    with wm.Pool(None, models[:2], backend="cpu") as pool:
        assert_equal(pool.merge("slerp", t=0.3), wm.merge_state_dicts(models[:2], "slerp", t=0.3))
    with wm.Pool(base, models, backend="cpu") as pool, pytest.raises(UsageError, match="exactly 2"):
        pool.merge("slerp", t=0.3)


def test_on_the_torch_backend(base, models):
    with wm.Pool(base, models, backend="torch") as pool:
        assert_equal(
            pool.merge("ties", weight=1, density=0.5),
            wm.Pool(base, models, backend="cpu").merge("ties", weight=1, density=0.5),
        )


def test_what_a_pool_says_of_itself(pool):
    assert (len(pool), pool.device, pool.backend) == (3, "cpu", "cpu")


def test_tied_tensors_of_state_dicts_stay_tied(base, models):
    with wm.Pool(base, models, backend="cpu") as pool:
        assert (merged := pool.merge("linear", weight=1))["head"] is merged["embed"]
        first, second = pool.sweep(ROWS[:2])
        assert first["head"] is first["embed"] is not second["embed"]


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (lambda p: p.merge("tise"), UsageError, "did you mean 'ties'"),
        (lambda p: p.merge("ties", weight=1, densty=1), UsageError, "did you mean 'density'"),
        (lambda p: p.merge("ties"), UsageError, "needs the parameter 'weight'"),
        (lambda p: p.merge("linear", weight=[1, 2]), UsageError, "one value per model"),
        (lambda p: p.merge("linear", weight=1, out_dtype="int8"), UsageError, "out_dtype"),
        (lambda p: p.sweep([[1, 2]]), UsageError, r"one number per model \(3\), not 2"),
        (lambda p: p.sweep([[1, 2, 3], []]), UsageError, r"one number per model \(3\), not 0"),
    ],
)
def test_wrong_calls(pool, act, error, message):
    with pytest.raises(error, match=message):
        act(pool)
    assert len(pool.merge("linear", weight=1)) == 10


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((None, []), {}, UsageError, "at least one model"),
        ((None, "model/"), {}, UsageError, "must be a list"),
        ((None, [{}]), {"device": "gpu"}, UsageError, "unknown device 'gpu'"),
        ((None, [{}]), {"backend": "cppu"}, UsageError, "did you mean 'cpu'"),
        ((None, [{}]), {"device": "cpu", "backend": "cuda"}, UsageError, "computes on cuda, not on cpu"),
        (("nowhere/", [{}]), {"device": "cpu"}, MergeError, "nowhere"),
        (
            (None, [{"a": torch.ones(1)}, {"b": torch.ones(1)}]),
            {"device": "cpu"},
            CheckpointError,
            "model 1 lacks the tensor 'a' of model 0",
        ),
        (({"a": torch.ones(1)}, [{}]), {"device": "cpu"}, CheckpointError, "model 0 lacks .* 'a' of the base"),
        (
            (None, [{"a": torch.ones(1).to(torch.complex128)}]),
            {"device": "cpu"},
            UsageError,
            "'a' of model 0 has the dtype",
        ),
    ],
)
def test_pools_that_cannot_be(arguments, options, error, message):
    with pytest.raises(error, match=message):
        wm.Pool(*arguments, **options)


def test_shapes_and_integers_that_differ():
    shapes = [{"w": torch.ones(3)}, {"w": torch.ones(4)}]
    with pytest.raises(CheckpointError, match=r"'w' is \[3\] in model 0 but \[4\] in model 1"):
        wm.Pool(None, shapes, backend="cpu").merge("linear", weight=1)
    integers = [{"i": torch.tensor([1])}, {"i": torch.tensor([2])}]
    with pytest.raises(CheckpointError, match=r"'i' .* differs between 'model 0' and 'model 1'"):
        wm.Pool(None, integers, backend="cpu").merge("linear", weight=1)
    assert wm.Pool(integers[1], integers, backend="cpu").merge("linear", weight=1)["i"].item() == 2


@pytest.mark.parametrize("files", [False, True])
def test_elements_that_are_not_finite(files, tmp_path):
    good = {"w": torch.ones(100), "frozen": torch.full((7,), math.nan)}
    bad = {"w": torch.tensor([1.0, math.inf] * 50), "frozen": good["frozen"].clone()}
    sources = [good, good, bad]
    if files:
        sources = [save(tmp_path / f"{i}", m) for i, m in enumerate(sources)]
    with wm.Pool(sources[0], sources[1:], backend="cpu") as pool:
        with pytest.raises(CheckpointError, match="50 of 100 in 'model 1'"):
            pool.merge("ties", weight=1, density=0.5)
        with pytest.raises(CheckpointError, match="50 of 100 in 'model 1'"):
            pool.sweep([[1, 2]])
        assert pool.merge("ties", weight=1, density=0.5, nonfinite="base")["w"].isfinite().all()
    with wm.Pool(sources[0], sources[:2], backend="cpu") as pool:
        for merged in [pool.merge("linear", weight=1), *pool.sweep([[1, 2], [3, 4]])]:
            assert merged["frozen"].isnan().all() and (merged["w"] == 1).all()


def test_close_gives_the_files_back(directories, base, models):
    there, others = directories
    before = sorted(os.listdir("/proc/self/fd"))
    pool = wm.Pool(there, others, backend="cpu")
    merged = pool.merge("linear", weight=1)
    pool.close()
    pool.close()
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert_equal(merged, wm.merge_state_dicts(models, "linear", base=base, weight=1))
    with pytest.raises(MergeError):
        wm.Pool(there, [*others, "nowhere/"], backend="cpu")
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_models_may_change_between_merges(base, models):
    """State dicts are held, not copied."""
    own = {name: tensor.clone() for name, tensor in models[0].items()}
    with wm.Pool(base, [own], backend="cpu") as pool:
        pool.merge("linear", weight=1)
        own["norm"].zero_()
        assert (pool.merge("linear", weight=1)["norm"] == 0).all()


# --- in place --------------------------------------------------------------------------------------------------------

IN_PLACE = """
import sys
sys.path[:0] = [{tests!r}, {tests!r} + "/backends/gpu"]
import math, torch, warpmerge as wm
from pool_models import Module, ROWS, WEIGHTS, assert_equal, state

base, models = state(0), [state(seed) for seed in (1, 2, 3)]
for origin, sources in [(base, models), ({base!r}, {models!r})]:
    with wm.Pool(origin, sources, backend="triton") as pool:
        assert (pool.backend, pool.device) == ("triton", "cpu")
        for method, parameters in [("linear", dict(weight=WEIGHTS)), ("ties", dict(weight=WEIGHTS, density=0.4))]:
            wanted = wm.merge_state_dicts(models, method, base=base, backend="cpu", **parameters)
            assert_equal(pool.merge(method, **parameters), wanted, method)
        for row, got in zip(ROWS[:2], pool.sweep(ROWS[:2])):
            assert_equal(got, wm.merge_state_dicts(models, "task_arithmetic", base=base, weight=row, backend="cpu"))
        module = Module(base, torch.float32, tied=origin is base)
        pool.merge("linear", weight=1, into=module)
        wanted = wm.merge_state_dicts(models, "linear", base=base, weight=1, out_dtype="float32", backend="cpu")
        assert_equal(module.state_dict(), wanted)
bad = {{"w": torch.tensor([1.0, math.nan]), "frozen": torch.tensor([math.inf])}}
good = {{"w": torch.ones(2), "frozen": torch.tensor([math.inf])}}
pool = wm.Pool(good, [good, bad], backend="triton")
for act in (lambda: pool.merge("linear", weight=1), lambda: pool.sweep([[1, 1]])):
    try:
        act()
    except wm.MergeError as error:
        assert "1 of 2 in 'model 1'" in str(error), error
    else:
        raise AssertionError
values = torch.tensor([1.0, 2.0, 3.0])
for odd in (torch._neg_view(-values), values.repeat(2, 1).T[:, 1], values.expand(2, 3)):
    merged = wm.Pool(None, [{{"w": odd}}], backend="triton").merge("linear", weight=1)
    assert merged["w"].tolist() == odd.tolist()
again = wm.Pool(good, [good, good], backend="triton").sweep([[1, 1], [1, 2]])
assert all((m["w"] == 1).all() and (m["frozen"] == math.inf).all() for m in again)
print("all equal")
"""


def test_in_place(directories):
    """Triton's interpreter takes the host's tensors for a device's: nothing is copied, nothing is staged."""
    pytest.importorskip("triton")
    there, others = directories
    code = IN_PLACE.format(tests=str(Path(__file__).parent), base=there, models=others)
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=300, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "all equal"), done.stderr[-3000:]


@pytest.mark.parametrize(
    "act",
    [
        lambda pool: pool.merge("linear", weight=[1.0]),
        lambda pool: pool.merge("linear", weight=[1.0], into={"a": torch.ones(3)}),
        lambda pool: pool.merge("no such method"),
        lambda pool: pool.sweep([[1.0]]),
        lambda pool: pool.sweep([]),
        lambda pool: pool.__enter__(),
        len,
    ],
)
@pytest.mark.parametrize("files", [False, True])
def test_a_closed_pool_cannot_be_used(act, files, tmp_path):
    model = {"a": torch.ones(3)}
    pool = wm.Pool(None, [save(tmp_path / "m", model) if files else model], device="cpu")
    merged = pool.merge("linear", weight=[1.0])
    pool.close()
    with pytest.raises(UsageError, match="the pool is closed; make a new one"):
        act(pool)
    pool.close()
    assert merged["a"].tolist() == [1, 1, 1] and (pool.device, pool.backend) == ("cpu", "cpu")


@pytest.mark.parametrize("files", [False, True])
def test_one_model_many_times_is_loaded_once(files, base, models, directories):
    there, others = directories
    origin, model = (there, others[0]) if files else (base, models[0])

    def opened(count):
        before = len(os.listdir("/proc/self/fd"))
        with wm.Pool(origin, [model] * count, device="cpu") as pool:
            merged = pool.merge("task_arithmetic", weight=1 / count)
            return merged, len(os.listdir("/proc/self/fd")) - before

    merged, files_open = opened(64)
    assert files_open == opened(1)[1]
    assert_equal(merged, wm.merge_state_dicts([models[0]] * 64, "task_arithmetic", base=base, weight=1 / 64))


@pytest.mark.parametrize("call", [lambda pool: pool.merge("linear", weight=1), lambda pool: pool.sweep([[1.0, 1.0]])])
def test_a_file_that_is_cut_while_the_pool_is_open(call, tmp_path):
    good = {"w": torch.ones(100_000)}
    with wm.Pool(None, [save(tmp_path / name, good) for name in "ab"], device="cpu") as pool:
        call(pool)
        for file in (tmp_path / "b").glob("*.safetensors"):
            os.truncate(file, 1000)
        with pytest.raises(CheckpointError, match=r"b/model.*\.safetensors changed while it was being read"):
            call(pool)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", TORCH_REFUSED)
def test_arguments_that_are_odd_tensors(kind):
    """Not even a message prints them: torch ends the process when it prints a tensor without memory."""
    odd = TORCH_REFUSED[kind][0]()
    pool = wm.Pool(None, [{"a": torch.ones(3)}], device="cpu")
    for act in (
        lambda: pool.sweep([[odd]]),
        lambda: pool.sweep(odd),
        lambda: pool.merge(odd),
        lambda: pool.merge("linear", weight=1, out_dtype=odd),
        lambda: pool.merge("linear", weight=1, seed=odd),
        lambda: pool.merge("linear", weight=1, nonfinite=odd),
        lambda: wm.Pool(odd, [{"a": torch.ones(3)}]),
        lambda: wm.Pool(None, odd),
        *(lambda name=name: wm.Pool(None, [{}], **{name: odd}) for name in ("device", "backend", "threads")),
        lambda: wm.merge_tensors([torch.ones(3)], "linear", weight=1, backend=odd),
        lambda: wm.merge_tensors([torch.ones(3)], "linear", weight=1, name=odd),
        lambda: wm.RunningEMA(odd),
    ):
        with pytest.raises(UsageError):
            act()


@pytest.mark.parametrize("threads", [0, -1, True, 1.5, "2", 10**9])
def test_numbers_of_threads(threads):
    with pytest.raises(UsageError, match="threads must be a number from 1 to 1024, got "):
        wm.Pool(None, [{"a": torch.ones(3)}], device="cpu", threads=threads)


@pytest.mark.parametrize("rows", [[["a"]], [None], 3, [[1.0, object()]], "text"])
def test_coefficients_that_are_no_numbers(rows):
    pool = wm.Pool(None, [{"a": torch.ones(3)}], device="cpu")
    with pytest.raises(UsageError, match="coefficients must be rows of numbers, got "):
        pool.sweep(rows)


def test_pools_that_nobody_closed_keep_no_files(tmp_path):
    for name in ("base", "a"):
        write_model(tmp_path / name, {f"w{i}": np.full((4, 4), i, np.float32) for i in range(4)}, shards=4)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        pool = wm.Pool(str(tmp_path / "base"), [str(tmp_path / "a")])
        pool.merge("linear", weight=1.0)
        assert len(os.listdir("/proc/self/fd")) <= before + 8
    del pool
    assert len(os.listdir("/proc/self/fd")) == before
