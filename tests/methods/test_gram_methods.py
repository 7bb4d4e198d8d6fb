"""Methods that solve on norms and distances, and new combinations of known kernels: accuracy, one method against
another, symmetries. The oracles (oracles_gram.py) work on the whole vectors.
"""

import itertools

import numpy as np
import oracles
import oracles_gram
import pytest
import torch
import warpmerge as wm
from kernel_helpers import DTYPES, assert_same_bits, bits, cpu, family, reference, run, task, values_of, weights
from oracles import assert_accurate
from warpmerge.methods import find

SHAPE = (61, 83)

# Each with the number of models, and whether there is a base.
CASES = {
    "ema": (4, False, {"decay": 0.7}),
    "ema-one": (1, False, {"decay": 0.7}),
    "ema-newest": (3, False, {"decay": 0.0}),
    "ema-oldest": (3, False, {"decay": 1.0}),
    "lawa": (5, False, {}),
    "lawa-last": (5, False, {"k": 2}),
    "expo": (1, True, {"alpha": 0.3}),
    "expo-back": (1, True, {"alpha": -0.5}),
    "nuslerp": (2, True, {"weight": [1, 2]}),
    "nuslerp-alone": (2, False, {"weight": [0.7, 0.3]}),
    "nuslerp-beyond": (2, True, {"weight": [-0.3, 1.3]}),
    "multislerp": (3, True, {"weight": weights(3)}),
    "multislerp-alone": (5, False, {"weight": weights(5)}),
    "multislerp-sum": (3, True, {"weight": [0.5, -0.3, 0.9], "normalize_weights": False}),
    "multislerp-opposed": (2, False, {"weight": [1.0, -1.0], "normalize_weights": False}),
    "multislerp-eps": (3, True, {"weight": 1, "eps": 0.05}),
    "multislerp-one": (1, True, {"weight": 3.0}),
    "karcher": (3, False, {}),
    "karcher-many": (9, False, {"max_iter": 50, "tol": 1e-12}),
    "karcher-start": (3, False, {"max_iter": 0}),
    "karcher-one": (1, False, {}),
    "model_stock": (2, True, {}),
    "model_stock-many": (5, True, {}),
    "krum": (5, False, {}),
    "krum-few": (3, False, {"f": 0}),
    "multi_krum": (7, False, {}),
    "multi_krum-m": (7, False, {"f": 1, "m": 4}),
    "geometric_median": (3, False, {}),
    "geometric_median-weights": (5, False, {"weight": weights(5), "max_iter": 500, "tol": 1e-13}),
    "geometric_median-start": (3, False, {"weight": weights(3), "max_iter": 0}),
    "norm_clipped_mean": (3, True, {"weight": weights(3)}),
    "norm_clipped_mean-number": (4, True, {"clip": 0.01}),
    "norm_clipped_mean-nothing": (2, True, {"clip": 0}),
    "norm_clipped_mean-all": (2, True, {"clip": 1e30, "weight": [1, 3]}),
}
SPHERICAL = ("nuslerp", "multislerp", "karcher")
SOLVED = (*SPHERICAL, "model_stock", "geometric_median", "norm_clipped_mean")
ROUNDED = 1e-13  # share of the largest operand that float64 coefficients from several steps may be off


def related(dtype, models, shape=SHAPE):
    """Fine-tunes of a base that share a direction and differ in how far they went."""
    base, tuned = family(dtype, models + 1, shape, sigma=2e-3)
    common = tuned.pop().double() - base.double()
    return base, [(t.double() + common * (k + 1) / 2).to(t.dtype) for k, t in enumerate(tuned)]


def distant(dtype, models, shape=SHAPE):
    """Models that have nothing in common, one of them far longer."""
    base, tuned = family(dtype, models, shape, sigma=0.2)
    return base, [(t.double() * (30 if k == 1 else 1)).to(t.dtype) for k, t in enumerate(tuned)]


KINDS = {"family": family, "related": related, "distant": distant}


def merged(case, tensors, base, **options):
    method, given = case.split("-")[0], CASES[case][1]
    return wm.merge_tensors(tensors, method, base=base if given else None, **(CASES[case][2] | options))


def expected(case, tensors, base):
    _, given, parameters = CASES[case]
    return oracles_gram.METHODS[case.split("-")[0]](tensors, *([base] if given else []), **parameters)


@pytest.mark.parametrize("dtype", [*DTYPES, "mixed", "mixed64"])
@pytest.mark.parametrize("case", CASES)
def test_accuracy(case, dtype):
    for make in KINDS.values():
        base, tensors = make(dtype, CASES[case][0], SHAPE)
        share = oracles.SPHERICAL if case.startswith(SPHERICAL) else None
        share = ROUNDED if dtype == "fp64" and case.startswith(SOLVED) else share
        assert_accurate(merged(case, tensors, base), expected(case, tensors, base), share=share)


@pytest.mark.parametrize("case", [c for c in CASES if "-" not in c])
def test_backends_agree(case):
    models, given, parameters = CASES[case]
    method, made = case.split("-")[0], []
    for dtype, shape in itertools.product(["bf16", "fp32", "mixed64"], [0, 1, 7, 4099]):
        base, tensors = family(dtype, models, shape)
        made.append((method, tensors, base if given else None))
    wanted = run(reference(), *(task(*m, **parameters) for m in made))
    got = run(cpu(threads=2, tile=512), *(task(*m, **parameters) for m in made))
    for one, other in zip(got, wanted, strict=True):
        assert_same_bits(one, other, case)


@pytest.mark.parametrize("case", CASES)
def test_passes_are_the_requests_that_are_made(case):
    models, given, parameters = CASES[case]
    method = find(case.split("-")[0])
    base, tensors = family("fp32", models, 1031)
    asked = []

    class Counting(type(reference())):
        def launch(self, work):
            asked.extend(request for _, request in work)
            return super().launch(work)

    run(Counting(), task(method.name, tensors, base if given else None, **parameters))
    assert len(asked) == method.passes(values_of(method.name, models, parameters))


# --- one method against another -------------------------------------------------------------------------------------


def test_expo_is_task_arithmetic():
    base, tensors = family("bf16", 1, SHAPE)
    got = wm.merge_tensors(tensors, "expo", base=base, alpha=0.25)
    assert_same_bits(got, wm.merge_tensors(tensors, "task_arithmetic", base=base, weight=1.25))


def test_means_of_checkpoints_are_linear():
    _, tensors = family("fp32", 3, SHAPE)
    assert_same_bits(
        wm.merge_tensors(tensors, "ema", decay=0.5), wm.merge_tensors(tensors, "linear", weight=[0.25, 0.25, 0.5])
    )
    for k in (1, 2, 3):
        wanted = wm.merge_tensors(tensors[-k:], "linear", weight=1)
        assert_same_bits(wm.merge_tensors(tensors, "lawa", k=k), wanted)
    assert torch.equal(wm.merge_tensors(tensors, "ema", decay=0), tensors[-1])
    assert torch.equal(wm.merge_tensors(tensors, "ema", decay=1), tensors[0])


def test_the_middle_of_two_is_one_on_every_sphere():
    """Equal norms and weights: slerp, nuslerp, multislerp and karcher all bisect the angle."""
    _, (a, b) = distant("fp64", 2)
    b = b * (a.norm() / b.norm())
    middle = wm.merge_tensors([a, b], "slerp", t=0.5)
    for method, parameters in {
        "nuslerp": {"weight": 1},
        "multislerp": {"weight": 0.5, "eps": 0},
        "karcher": {"tol": 1e-12},
    }.items():
        got = wm.merge_tensors([a, b], method, **parameters)
        torch.testing.assert_close(got, middle, rtol=1e-12, atol=1e-15)


def test_nuslerp_is_slerp_where_that_is_spherical():
    _, tensors = distant("fp32", 2)
    got = wm.merge_tensors(tensors, "nuslerp", weight=[3, 1])
    assert_same_bits(got, wm.merge_tensors(tensors, "slerp", t=0.25))


def test_a_karcher_mean_is_one():
    """The directions to the models, as long as the angles to them, cancel."""
    _, tensors = distant("fp64", 5)
    mean = oracles_gram.unit(oracles_gram.exact(wm.merge_tensors(tensors, "karcher", tol=1e-13, max_iter=200)))
    total = np.zeros_like(mean)
    for t in tensors:
        u = oracles_gram.unit(oracles_gram.exact(t))
        angle = oracles_gram.angle_between(u, mean)
        total += angle / np.sin(angle) * (u - (u * mean).sum() * mean)
    assert oracles_gram.norm(total) < 1e-11


def test_robust_methods_without_outliers_are_means():
    base, tensors = family("fp32", 5, SHAPE)
    mean = wm.merge_tensors(tensors, "linear", weight=1)
    assert_same_bits(wm.merge_tensors(tensors, "multi_krum", f=0, m=5), mean)
    assert_same_bits(wm.merge_tensors(tensors, "geometric_median", max_iter=0), mean)
    clipped = wm.merge_tensors(tensors, "norm_clipped_mean", base=base, clip=1e9)
    wanted = wm.merge_tensors(tensors, "task_arithmetic", base=base, weight=1, normalize=True)
    assert_same_bits(clipped, wanted)


def test_an_outlier_is_left_out():
    base, tensors = family("fp32", 5, SHAPE)
    tensors[2] = tensors[2] + 10
    for method in ("krum", "multi_krum", "geometric_median"):
        assert (wm.merge_tensors(tensors, method) - base).abs().max() < 0.02
    clipped = wm.merge_tensors(tensors, "norm_clipped_mean", base=base)
    assert (clipped - base).abs().max() < 0.02
    heavy = wm.merge_tensors(tensors, "geometric_median", weight=[1, 1, 9, 1, 1])
    torch.testing.assert_close(heavy, tensors[2], rtol=1e-5, atol=0)  # most of the weight is the median


def test_krum_copies_the_bytes():
    _, tensors = family("fp32", 5, (5, 7))
    for t in tensors:
        t[0, :2] = 1e-5
    tensors[3] = sum(tensors) / 5
    tensors[3][0, :2] = torch.tensor([-0.0, 1e-42])
    assert np.array_equal(bits(wm.merge_tensors(tensors, "krum")), bits(tensors[3]))
    assert_same_bits(wm.merge_tensors(tensors, "multi_krum", m=1), tensors[3])
    for dtype in (torch.bfloat16, torch.float64):
        assert_same_bits(wm.merge_tensors(tensors, "krum", out_dtype=dtype), tensors[3].to(dtype))
    same = [tensors[0].clone() for _ in range(4)]
    assert_same_bits(wm.merge_tensors(same, "krum"), tensors[0])


# --- symmetries -----------------------------------------------------------------------------------------------------

# (With one neighbour each, two models always tie for Krum.)
SYMMETRIC = [c for c in CASES if not c.startswith(("ema", "lawa", "krum-few")) and CASES[c][0] in (3, 5, 7)]


@pytest.mark.parametrize("case", SYMMETRIC)
def test_order_of_the_models(case):
    """Coefficients do not depend on it at all; the sum is rounded in another order."""
    models, _, parameters = CASES[case]
    base, tensors = distant("fp64", models)
    order = [*range(1, models), 0]
    moved = {n: [v[i] for i in order] for n, v in parameters.items() if isinstance(v, list)}
    got = merged(case, [tensors[i] for i in order], base, **moved)
    torch.testing.assert_close(got, merged(case, tensors, base), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("case", [c for c in CASES if "-eps" not in c and "-number" not in c])
@pytest.mark.parametrize("power", [-20, 30])
def test_scale(case, power):
    """All models times a power of two: so is the result, to the last bit. No length counts as zero but zero."""
    options = {"eps": 1e-12} if case.startswith("geometric_median") else {}
    options |= {"eps": 0} if case.startswith("multislerp") else {}
    base, tensors = related("fp32", CASES[case][0])
    base, tensors = base.double(), [t.double() for t in tensors]
    got = merged(case, [t * 2.0**power for t in tensors], base * 2.0**power, **options)
    assert_same_bits(got, merged(case, tensors, base, **options) * 2.0**power)


def test_model_stock_of_tiny_changes():
    """Cosines do not shrink with the deltas, as they would if norms were kept above a bound."""
    base, tensors = related("fp64", 2)
    deltas = [t - base for t in tensors]
    zero = torch.zeros_like(base)
    large = wm.merge_tensors(deltas, "model_stock", base=zero)
    small = wm.merge_tensors([d * 1e-9 for d in deltas], "model_stock", base=zero)
    torch.testing.assert_close(small, large * 1e-9, rtol=1e-12, atol=0)
