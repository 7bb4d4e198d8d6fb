"""Methods on matrices, and Fisher merging: accuracy, one method against another, symmetries.

They are compared as matrices: what was added to the base, relative to the oracle's in the Frobenius norm.
"""

import numpy as np
import oracles_dense
import pytest
import torch
import warpmerge as wm
from kernel_helpers import assert_same_bits, cpu, family, reference, run, task, values_of, weights
from warpmerge.methods import find, linalg, subspaces

SHAPES = [(31, 31), (83, 40), (24, 120), (3, 7), (1, 9), (9, 1), (50,), (4, 5, 6), ()]
DTYPES = ["bf16", "fp32", "fp64", "mixed", "mixed64"]

# Each with the number of models.
CASES = {
    "tsv": (3, {}),
    "tsv-weights": (2, {"weight": [0.7, -0.4], "lambda_": 0.5}),
    "tsv-one": (1, {}),
    "tsv-many": (9, {}),
    "iso_c": (3, {}),
    "iso_c-weights": (2, {"weight": [1.0, 0.3], "lambda_": 0.7}),
    "iso_cts": (3, {}),
    "iso_cts-none": (3, {"common": 0}),
    "iso_cts-all": (2, {"common": 1, "weight": [1.0, 0.3]}),
    "iso_cts-half": (5, {"common": 0.5, "lambda_": 2.0}),
    "knots": (3, {}),
    "knots-trimmed": (4, {"density": [0.3, 0.5, 1.0, 0.0], "weight": weights(4)}),
    "knots-sum": (3, {"merge": "task_arithmetic", "weight": [0.5, -0.3, 0.9]}),
    "knots-one": (1, {"density": 0.2}),
    "wudi": (3, {}),
    "wudi-one": (1, {"lambda_": 0.5}),
    "wudi-many": (7, {}),
}
# Beyond the rounding of the result. Measured: at most 3e-8, of knots, whose parts are held in float32, and 2e-9, of tsv
# where the vectors of the models are nearly dependent.
TOLERANCE = {torch.float32: 1e-7, torch.float64: 1e-7}


@pytest.fixture(autouse=True)
def one_thread():
    """Threads only wait for each other in matrices as small as these."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def merged(case, tensors, base, **options):
    return wm.merge_tensors(tensors, case.split("-")[0], base=base, **(CASES[case][1] | options))


def added(case, tensors, base):
    """Result less base, as float64: the result is not rounded further than to the compute type."""
    kind = torch.float64 if torch.float64 in {t.dtype for t in [*tensors, base]} else torch.float32
    got = merged(case, tensors, base, out_dtype=kind)
    return oracles_dense.fp64(got) - oracles_dense.fp64(base), kind


def error(got, wanted, base, kind=torch.float64, least=0.0):
    """Relative to the norm that is wanted, or `least`, and beyond the rounding of the sum with the base."""
    rounding = torch.finfo(kind).eps / 2 * np.linalg.norm(oracles_dense.fp64(base) + wanted)
    return max(0.0, np.linalg.norm(got - wanted) - rounding) / (max(np.linalg.norm(wanted), least) or 1.0)


def expected(case, tensors, base):
    return oracles_dense.METHODS[case.split("-")[0]](tensors, base, **CASES[case][1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_accuracy(case, dtype):
    for shape in SHAPES:
        base, tensors = family(dtype, CASES[case][0], shape, sigma=0.02)
        got, kind = added(case, tensors, base)
        assert error(got, expected(case, tensors, base), base, kind) < TOLERANCE[kind], shape


@pytest.mark.parametrize("case", CASES)
def test_blocks_change_nothing(case, monkeypatch):
    """Matrices longer than a block of rows, and Gram matrices wider than a panel."""
    for shape in ((83, 40), (40, 83)):
        base, tensors = family("fp64", CASES[case][0], shape)
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


@pytest.mark.parametrize("case", ["tsv", "iso_c", "iso_cts", "knots-sum", "wudi"])
@pytest.mark.parametrize("shape", [(40, 40), (60, 30), (30, 60)])
def test_ill_conditioned(case, shape):
    """A condition number of 5e5, which Gram matrices square. Measured: at most 5e-8, of iso_c."""
    base, tensors = graded(shape, CASES[case][0], 2e-6)
    got, _ = added(case, tensors, base)
    assert error(got, expected(case, tensors, base), base) < 1e-6


@pytest.mark.parametrize("case", [c for c in CASES if c.split("-")[0] != "wudi"])
@pytest.mark.parametrize("shape", [(40, 40), (60, 30), (30, 60)])
def test_low_rank(case, shape):
    """LoRA merges: no vector of a null space takes part."""
    rng = np.random.default_rng(1)
    base = torch.from_numpy(rng.standard_normal(shape) * 0.02)
    tensors = [
        base + torch.from_numpy(rng.standard_normal((shape[0], 4)) @ rng.standard_normal((4, shape[1])) * 0.01)
        for _ in range(CASES[case][0])
    ]
    got, _ = added(case, tensors, base)
    assert error(got, expected(case, tensors, base), base) < 1e-8
    if not case.startswith("knots-trimmed"):
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
    got, _ = added("tsv", tensors, base)
    kept = [np.linalg.svd(oracles_dense.fp64(t - base), compute_uv=False)[:10] for t in tensors]
    found = np.linalg.svd(got, compute_uv=False)
    np.testing.assert_allclose(found, np.sort(np.concatenate(kept))[::-1], rtol=1e-10)


@pytest.mark.parametrize("shape", [(40, 40), (83, 20), (20, 83), (5, 200), (200, 5)])
def test_the_gradient_is_zero_where_interference_is_least(shape):
    """Measured: at most 2e-15; for a condition number of 1e4, 3e-13."""
    for base, tensors in (family("fp64", 3, shape), graded(shape, 3, 1e-4)):
        got, _ = added("wudi", tensors, base)
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


@pytest.mark.parametrize("case", ["tsv", "iso_c", "iso_cts", "knots", "wudi"])
def test_order_scale_and_transposition(case):
    base, tensors = graded((20, 14), CASES[case][0], 0.1)
    got, _ = added(case, tensors, base)
    assert error(added(case, tensors[::-1], base)[0], got, base) < 1e-9
    assert error(added(case, [t * 2.0**20 for t in tensors], base)[0], got * 2.0**20, base) < 1e-12
    if case in ("tsv", "iso_c"):
        turned, _ = added(case, [t.T for t in tensors], base.T)
        assert error(turned.T, got, base) < 1e-9


@pytest.mark.parametrize("case", CASES)
def test_the_same_bits_again_and_on_both_backends(case):
    """With one thread; torch's sums may differ with the number of threads."""
    for shape in ((40, 83), (7,)):
        base, tensors = family("bf16", CASES[case][0], shape)
        made = [task(case.split("-")[0], tensors, base, **CASES[case][1]) for _ in range(3)]
        results = [run(backend, t)[0] for backend, t in zip((cpu(), cpu(), reference()), made, strict=True)]
        assert_same_bits(results[0], results[1])
        assert_same_bits(results[0], results[2])


@pytest.mark.parametrize("case", CASES)
def test_other_tensors_get_the_mean_of_the_deltas(case):
    models, options = CASES[case]
    base, tensors = family("bf16", models, (3, 4, 5))
    weight = [w / models for w in oracles_dense.per_model(options.get("weight", 1.0), models)]
    lambda_ = options.get("lambda_", 1.0)
    plain = wm.merge_tensors(tensors, "task_arithmetic", base=base, weight=[lambda_ * w for w in weight])
    got = merged(case, tensors, base)
    torch.testing.assert_close(got, plain, rtol=0, atol=0)


@pytest.mark.parametrize("case", CASES)
def test_one_pass(case):
    models, options = CASES[case]
    assert find(case.split("-")[0]).passes(values_of(case.split("-")[0], models, options)) == 1
