"""Methods on matrices, and means with auxiliary tensors: degenerate inputs, NaN, infinities, bad values."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import warpmerge as wm
from helpers import run_cli, run_process, write_model, write_recipe, write_ties
from kernel_helpers import DTYPES, assert_same_bits, family
from test_dense_methods import CASES, added, error, expected, merged, one_thread  # noqa: F401

MATRIX = torch.tensor([[1.0, 2, -2, 0.5], [0.25, -1, 3, 0], [2, 2, 1, -1]])
DEGENERATE = {
    "identical": (MATRIX, MATRIX, MATRIX),
    "zero": (MATRIX * 0, MATRIX * 0, MATRIX * 0),
    "one zero": (MATRIX, MATRIX * 0, MATRIX.flip(1)),
    "all but one zero": (MATRIX * 0, MATRIX, MATRIX * 0),
    "parallel": (MATRIX, 2 * MATRIX, 3 * MATRIX),
    "antiparallel": (MATRIX, -MATRIX, MATRIX),
    "cancelling": (MATRIX, MATRIX, -2 * MATRIX),
    "one row": (MATRIX[:1], MATRIX[1:2], MATRIX[2:]),
    "one column": (MATRIX[:, :1], MATRIX[:, 1:2], MATRIX[:, 2:3]),
    "one element": (MATRIX[:1, :1], MATRIX[1:2, :1], MATRIX[2:, :1]),
    "one vector": (MATRIX[0], MATRIX[1], MATRIX[2]),
    "no dimension": (MATRIX[0, 0], MATRIX[1, 0], MATRIX[2, 0]),
    "empty": (torch.empty(0, 3), torch.empty(0, 3), torch.empty(0, 3)),
    "no columns": (torch.empty(3, 0), torch.empty(3, 0), torch.empty(3, 0)),
    "subnormal": (MATRIX * 1e-45, MATRIX * 3e-44, MATRIX * 0),
    "huge": (MATRIX * 1e37, -MATRIX * 2e37, MATRIX * 1e37),
    "rank one": (MATRIX[:, :1] @ MATRIX[:1], MATRIX[:, 1:2] @ MATRIX[:1], MATRIX[:, :1] @ MATRIX[1:2]),
}
# Where votes that cancel, or elements that are 0 or equal but for rounding, leave the choice to it.
UNDETERMINED = {("knots", kind) for kind in ("antiparallel", "all but one zero", "rank one")}


@pytest.mark.parametrize("kind", DEGENERATE)
@pytest.mark.parametrize("case", CASES)
def test_degenerate(case, kind):
    """No error, no NaN, the same shape; and what the oracle says."""
    tensors = [DEGENERATE[kind][i % 3].clone() for i in range(CASES[case][0])]
    base = torch.zeros_like(tensors[0])
    got = merged(case, tensors, base)
    assert (got.shape, got.dtype) == (base.shape, torch.float32) and got.isfinite().all()
    if got.numel() and kind not in ("subnormal", "huge") and (case.split("-")[0], kind) not in UNDETERMINED:
        delta, _ = added(case, tensors, base)
        size = 1e-3 * max(float(t.norm()) for t in tensors)
        assert error(delta, expected(case, tensors, base), base, torch.float32, size) < 1e-6


def test_a_model_that_changed_nothing_has_no_vote():
    tensors = [MATRIX * 0, MATRIX, MATRIX * 0]
    torch.testing.assert_close(wm.merge_tensors(tensors, "knots", base=MATRIX * 0), MATRIX)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (40, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_votes_that_cancel_keep_nothing(shape, dtype):
    """Whichever signs the singular vectors have, which the order of the rows can change."""
    both = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0), dtype=dtype)
    zero = torch.zeros_like(both[0])
    order = torch.randperm(shape[0], generator=torch.Generator().manual_seed(1))

    def knots(*tensors, **options):
        return wm.merge_tensors(tensors, "knots", base=torch.zeros_like(tensors[0]), **options)

    assert not knots(both[0], -both[0]).any() and not knots(both[0][order], -both[0][order]).any()
    # Two blocks along the diagonal: the models cancel in the first one and are the same in the second.
    blocks = [torch.cat([torch.cat([a, zero], 1), torch.cat([zero, both[1]], 1)]) for a in (both[0], -both[0])]
    wanted = torch.block_diag(zero, both[1])
    order = torch.randperm(2 * shape[0], generator=torch.Generator().manual_seed(1))
    tolerance = {"rtol": 0, "atol": 2e-6 if dtype is torch.float32 else 1e-12}
    torch.testing.assert_close(knots(*blocks), wanted, **tolerance)
    torch.testing.assert_close(knots(*(b[order] for b in blocks)), wanted[order], **tolerance)


def test_parts_of_a_negative_weight_are_subtracted():
    one = torch.ones(1, 1)
    got = wm.merge_tensors([one, 3 * one], "knots", base=one * 0, weight=[1.0, -1.0], merge="task_arithmetic")
    torch.testing.assert_close(got, -2 * one)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_a_frozen_tensor_keeps_its_bits(case, dtype):
    """Also -0, subnormals, NaN; as a matrix and as a vector."""
    values = torch.tensor([[-0.0, 0.0, 0.1, -6e-8], [3.0, 1e-45, -7.7, 2.0]], dtype=torch.float64)
    nan = torch.tensor([[float("nan"), -float("inf")], [-0.0, 1.0]])
    for frozen in (values, values * 1e-10, values * 0, nan, values[0], values[:0]):
        frozen = frozen.to(DTYPES[dtype])
        assert_same_bits(merged(case, [frozen.clone() for _ in range(CASES[case][0])], frozen.clone()), frozen)


@pytest.mark.parametrize("case", CASES)
def test_nothing_is_added(case):
    base, tensors = family("bf16", CASES[case][0], (12, 9))
    assert_same_bits(merged(case, tensors, base, lambda_=0), base)


@pytest.mark.parametrize("case", CASES)
def test_nonfinite_elements(case):
    """They do not spoil a matrix: they count as unchanged, and come through only where they are."""
    base, tensors = family("fp32", CASES[case][0], (12, 9))
    changed = tensors[0].clone()
    changed[2, 3], changed[5, 0] = float("nan"), float("inf")
    with pytest.raises(wm.CheckpointError, match="2 of 108 in 'model 0'"):
        merged(case, [changed, *tensors[1:]], base)
    unchanged = tensors[0].clone()
    unchanged[2, 3], unchanged[5, 0] = base[2, 3], base[5, 0]
    plain = merged(case, [unchanged, *tensors[1:]], base)
    assert_same_bits(merged(case, [changed, *tensors[1:]], base, nonfinite="base"), plain)
    through = merged(case, [changed, *tensors[1:]], base, nonfinite="propagate")
    odd = ~through.isfinite()
    assert odd.nonzero().tolist() == [[2, 3], [5, 0]]
    assert_same_bits(through.where(~odd, plain), plain)


def test_squares_that_overflow():
    tensors = [torch.full((3, 3), 1e200 * k, dtype=torch.float64) for k in (1, 2)]
    for method in ("tsv", "iso_c", "wudi"):
        with pytest.raises(wm.MergeError, match=f"method '{method}' failed on tensor 'w': .*overflow"):
            wm.merge_tensors(tensors, method, base=tensors[0] * 0, name="w")


@pytest.mark.parametrize(
    ("method", "options", "part"),
    [
        ("tsv", {"cutoff": 0}, "'cutoff': expected a number in [1e-07, 1], got 0"),
        ("iso_cts", {"common": 1.5}, "'common': expected a number in [0, 1], got 1.5"),
        ("knots", {"merge": "dare"}, "'merge': expected one of ties, task_arithmetic, got 'dare'"),
        ("knots", {"density": 1.5}, "'density': expected a number in [0, 1], got 1.5"),
        ("knots", {"weight": [1.0, -1.0]}, "instead of subtracted; set merge: task_arithmetic"),
        ("knots", {"weight": [1.0]}, "'weight': expected one value per model (2), got 1"),
        ("wudi", {"weight": 1}, "method 'wudi' has no parameter 'weight'"),
        ("iso_c", {"base": None}, "method 'iso_c' needs a base"),
    ],
)
def test_bad_values(method, options, part):
    base, tensors = family("fp32", 2, (4, 4))
    with pytest.raises(wm.UsageError, match=re.escape(part)):
        wm.merge_tensors(tensors, method, **({"base": base} | options))


def test_files_without_torch(tmp_path):
    """A clear error, and nothing left behind that looks complete."""
    models = write_ties(tmp_path)
    document = {"merge_method": "iso_c", "base_model": "base", "models": ["a", "b"]}
    recipe = write_recipe(models / "i.yml", document)
    hidden = "import sys\nsys.modules['torch'] = None\n"
    done = run_process("merge", recipe, "out", setup=hidden, cwd=tmp_path)
    assert done.status == 1 and "a method that works on whole tensors needs torch" in done.stderr
    assert not (models / "out" / "model.safetensors").exists()
    done = run_process("plan", recipe, setup=hidden, cwd=tmp_path)
    assert done.status == 0
    done = run_process("merge", recipe, "out", "--no-sync", cwd=tmp_path)
    assert (done.status, done.stderr) == (0, "")


def test_pools_merge_them():
    base, tensors = family("fp32", 2, (6, 5))
    with wm.Pool({"w": base}, [{"w": t} for t in tensors]) as pool:
        got = pool.merge("tsv")["w"]
    assert_same_bits(got, wm.merge_tensors(tensors, "tsv", base=base))
    assert np.isfinite(got.numpy()).all()


# Not by getrusage: its peak starts as that of the process that forked this one.
MEASURE = """
import re, sys
import warpmerge as wm

def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])

wm.merge(sys.argv[1], "small", sync=False)  # what the libraries need
before = peak()
report = wm.merge(sys.argv[2], "large", sync=False, threads=1)
print(peak() - before, report.memory)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
@pytest.mark.parametrize(("method", "shape"), [("tsv", (4000, 200)), ("knots", (800, 700))])
def test_memory_stays_below_the_estimate(method, shape, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipes = []
    for size, dimensions in (("small", (20, 10)), ("large", shape)):
        for seed, name in enumerate(("base", "a", "b", "c")):
            values = np.random.default_rng(seed).standard_normal(dimensions).astype(np.float32)
            write_model(tmp_path / f"{size}_{name}", {"w": values})
        models = [f"{size}_{name}" for name in ("a", "b", "c")]
        document = {"merge_method": method, "base_model": f"{size}_base", "models": models}
        recipes.append(write_recipe(tmp_path / f"{size}.yml", document))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", MEASURE, *recipes]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    used, estimate = map(int, done.stdout.split())
    assert 0 < used <= estimate
    least = run_cli("plan", recipes[1], "--memory", "1MB", "--threads", 1)
    assert least.status == 2 and f"because method '{method}' holds more of a tensor than tiles" in least.stderr
