"""Methods on matrices: conditions, ranks, one against another, memory. They are compared as matrices.

What holds for every method is in test_every_method.py.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import oracles_dense
import pytest
import torch
import warpmerge as wm
from helpers import run_cli, run_process, write_model, write_recipe, write_ties
from kernel_helpers import assert_same_bits, family
from method_cases import added, error
from method_table import CASES, DENSE, cases_of
from odd_inputs import INF, NAN, ONE
from warpmerge.methods import linalg, subspaces

EACH = pytest.mark.parametrize("case", cases_of(DENSE), ids=lambda case: case.name)


@EACH
def test_blocks_change_nothing(case, monkeypatch):
    """Matrices longer than a block of rows, and Gram matrices wider than a panel."""
    for shape in ((83, 40), (40, 83)):
        base, tensors = family("fp64", case.few, shape)
        whole, _ = added(case, tensors, base)
        monkeypatch.setattr(linalg, "BLOCK", 400)
        monkeypatch.setattr(linalg, "PANEL", 7)
        assert error(added(case, tensors, base)[0], whole, base) < 1e-11
        monkeypatch.undo()


def graded(shape, models, least, seed=0):
    """A base of zeros and models whose singular values fall evenly from 1 to `least`; half of their vectors agree."""
    rng = np.random.default_rng(seed)
    r = min(shape)
    common = rng.standard_normal((shape[0], r // 2))
    made = []
    for _ in range(models):
        left = np.concatenate([common, rng.standard_normal((shape[0], r - r // 2))], 1)
        u, v = np.linalg.qr(left)[0], np.linalg.qr(rng.standard_normal((shape[1], r)))[0]
        made.append(torch.from_numpy((u * np.logspace(0, np.log10(least), r)) @ v.T))
    return torch.zeros(shape, dtype=torch.float64), made


@pytest.mark.parametrize("name", ["tsv", "iso_c", "iso_cts", "knots-sum", "wudi"])
@pytest.mark.parametrize("shape", [(40, 40), (60, 30), (30, 60)])
def test_ill_conditioned(name, shape):
    """A condition number of 5e5, which Gram matrices square. Measured: at most 5e-8, of iso_c."""
    case = CASES[name]
    base, tensors = graded(shape, case.few, 2e-6)
    got, _ = added(case, tensors, base)
    assert error(got, case.expected(tensors, base), base) < 1e-6


@pytest.mark.parametrize("case", [c for c in cases_of(DENSE) if c.method != "wudi"], ids=lambda case: case.name)
@pytest.mark.parametrize("shape", [(40, 40), (60, 30), (30, 60)])
def test_low_rank(case, shape):
    """LoRA merges: no vector of a null space takes part."""
    rng = np.random.default_rng(1)
    base = torch.from_numpy(rng.standard_normal(shape) * 0.02)
    tensors = [
        base + torch.from_numpy(rng.standard_normal((shape[0], 4)) @ rng.standard_normal((4, shape[1])) * 0.01)
        for _ in range(case.few)
    ]
    got, _ = added(case, tensors, base)
    assert error(got, case.expected(tensors, base), base) < 1e-8
    if case.name != "knots-trimmed":
        spanned = np.concatenate([oracles_dense.fp64(t - base) for t in tensors], 1)
        assert np.linalg.matrix_rank(np.concatenate([spanned, got], 1), 1e-8) == np.linalg.matrix_rank(spanned, 1e-8)


def test_a_cutoff_finds_the_rank_below_rounding():
    """A LoRA merge saved in bfloat16 has full rank: iso_c would blow its rounding up to the mean singular value."""
    rng = np.random.default_rng(2)
    base = torch.from_numpy(rng.standard_normal((64, 64)) * 0.02).bfloat16()
    exact = rng.standard_normal((64, 2)) @ rng.standard_normal((2, 64)) * 0.01
    tuned = [(base.double() + torch.from_numpy(exact)).bfloat16()]
    ideal = oracles_dense.iso_c([base.double() + torch.from_numpy(exact)], base.double())
    got = [
        oracles_dense.fp64(wm.merge_tensors(tuned, "iso_c", base=base, out_dtype="float32", cutoff=c))
        for c in (1e-6, 0.05)
    ]
    off = [np.linalg.norm(g - oracles_dense.fp64(base) - ideal) / np.linalg.norm(ideal) for g in got]
    assert off[0] > 1 and off[1] < 0.3


# --- one method against another ---------------------------------------------------------------------------------------


def test_knots_without_trimming_and_election_is_task_arithmetic():
    for shape in ((31, 31), (83, 20), (20, 83)):
        base, tensors = family("fp64", 3, shape)
        options = {"weight": [0.5, -0.3, 0.9], "lambda_": 0.8}
        got = wm.merge_tensors(tensors, "knots", base=base, merge="task_arithmetic", **options)
        torch.testing.assert_close(
            got, wm.merge_tensors(tensors, "task_arithmetic", base=base, **options), rtol=0, atol=1e-15
        )


def test_iso_c_is_the_sum_where_all_singular_values_are_equal():
    rng = np.random.default_rng(3)
    q = np.linalg.qr(rng.standard_normal((30, 20)))[0]
    first = rng.standard_normal((30, 20))
    tensors = [torch.from_numpy(t) for t in (first, 0.3 * q - first)]
    base = torch.zeros(30, 20, dtype=torch.float64)
    for turned in (lambda t: t, lambda t: t.T):
        got = wm.merge_tensors([turned(t) for t in tensors], "iso_c", base=turned(base))
        torch.testing.assert_close(turned(got), sum(tensors), rtol=0, atol=1e-14)


def test_iso_cts_without_directions_of_single_models_is_iso_c():
    base, tensors = family("fp64", 3, (20, 33))
    got = wm.merge_tensors(tensors, "iso_cts", base=base, common=1)
    torch.testing.assert_close(got, wm.merge_tensors(tensors, "iso_c", base=base), rtol=0, atol=1e-14)


def test_task_singular_vectors_do_not_interfere():
    """The merged delta maps each task's orthogonalized right vectors onto its left ones: singular values are kept."""
    base, tensors = family("fp64", 3, (40, 30))
    got, _ = added(CASES["tsv"], tensors, base)
    kept = [np.linalg.svd(oracles_dense.fp64(t - base), compute_uv=False)[:10] for t in tensors]
    found = np.linalg.svd(got, compute_uv=False)
    np.testing.assert_allclose(found, np.sort(np.concatenate(kept))[::-1], rtol=1e-10)


@pytest.mark.parametrize("shape", [(40, 40), (83, 20), (20, 83), (5, 200), (200, 5)])
def test_the_gradient_is_zero_where_interference_is_least(shape):
    """Measured: at most 2e-15; for a condition number of 1e4, 3e-13."""
    for base, tensors in (family("fp64", 3, shape), graded(shape, 3, 1e-4)):
        got, _ = added(CASES["wudi"], tensors, base)
        assert oracles_dense.wudi_gradient(got, oracles_dense.deltas(tensors, base)) < 1e-11


def test_orthogonal_deltas_do_not_interfere():
    """Deltas on different inputs: their sum has no interference at all."""
    rng = np.random.default_rng(4)
    tensors = [torch.zeros(6, 12, dtype=torch.float64) for _ in range(3)]
    for k, t in enumerate(tensors):
        t[:, 4 * k : 4 * k + 4] = torch.from_numpy(rng.standard_normal((6, 4)))
    got = wm.merge_tensors(tensors, "wudi", base=torch.zeros_like(tensors[0]))
    torch.testing.assert_close(got, sum(tensors), rtol=0, atol=1e-14)


def test_shares_of_directions():
    for short in range(1, 40):
        for models in range(1, 12):
            for common in (0, 0.3, 0.5, 0.8, 1):
                shared = subspaces.shared_directions(short, models, common)
                assert 0 <= shared <= short and (short - shared) % models == 0


# --- symmetries -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tsv", "iso_c", "iso_cts", "knots", "wudi"])
def test_order_scale_and_transposition(name):
    case = CASES[name]
    base, tensors = graded((20, 14), case.few, 0.1)
    got, _ = added(case, tensors, base)
    assert error(added(case, tensors[::-1], base)[0], got, base) < 1e-9
    assert error(added(case, [t * 2.0**20 for t in tensors], base)[0], got * 2.0**20, base) < 1e-12
    if name in ("tsv", "iso_c"):
        turned, _ = added(case, [t.T for t in tensors], base.T)
        assert error(turned.T, got, base) < 1e-9


@EACH
def test_other_tensors_get_the_mean_of_the_deltas(case):
    base, tensors = family("bf16", case.few, (3, 4, 5))
    given = case.given(case.few)
    weight = [w / case.few for w in oracles_dense.per_model(given.get("weight", 1.0), case.few)]
    lambda_ = given.get("lambda_", 1.0)
    plain = wm.merge_tensors(tensors, "task_arithmetic", base=base, weight=[lambda_ * w for w in weight])
    torch.testing.assert_close(case.merged(tensors, base), plain, rtol=0, atol=0)


def test_a_model_that_changed_nothing_has_no_vote():
    tensors = [ONE * 0, ONE, ONE * 0]
    torch.testing.assert_close(wm.merge_tensors(tensors, "knots", base=ONE * 0), ONE)


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


@EACH
def test_elements_that_are_not_finite_do_not_spoil_a_matrix(case):
    """They count as unchanged, and come through only where they are."""
    base, tensors = family("fp32", case.few, (12, 9))
    tensors[0][2, 3], tensors[0][5, 0] = NAN, INF
    unchanged, through = (case.merged(tensors, base, nonfinite=policy) for policy in ("base", "propagate"))
    odd = ~through.isfinite()
    assert odd.nonzero().tolist() == [[2, 3], [5, 0]]
    assert_same_bits(through.where(~odd, unchanged), unchanged)


def test_squares_that_overflow():
    tensors = [torch.full((3, 3), 1e200 * k, dtype=torch.float64) for k in (1, 2)]
    for method in ("tsv", "iso_c", "wudi"):
        with pytest.raises(wm.MergeError, match=f"method '{method}' failed on tensor 'w': .*overflow"):
            wm.merge_tensors(tensors, method, base=tensors[0] * 0, name="w")


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
    command = [sys.executable, "-c", MEASURE, *recipes]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    used, estimate = map(int, done.stdout.split())
    assert 0 < used <= estimate
    least = run_cli("plan", recipes[1], "--memory", "1MB", "--threads", 1)
    assert least.status == 2 and f"because method '{method}' holds more of a tensor than tiles" in least.stderr
