"""Methods that work on each element by itself: one against another, at their bounds, and by hand.

What holds for every method is in test_every_method.py.
"""

import itertools

import numpy as np
import oracles
import oracles_elementwise
import pytest
import torch
import warpmerge as wm
from kernel_helpers import assert_same_bits, densities, family, weights
from method_cases import SHAPE
from method_table import CASES
from odd_inputs import INF, NAN
from warpmerge.methods.order import comparators


def merged(method, tensors, base=None, **parameters):
    """The result, the same on the CPU and by the reference."""
    results = [wm.merge_tensors(tensors, method, base=base, backend=b, **parameters) for b in ("cpu", "torch")]
    assert_same_bits(*results)
    return results[0]


@pytest.mark.parametrize("count", range(1, 9))
def test_comparators_sort_zeros_and_ones(count):
    """What sorts all of them sorts everything (Knuth 5.3.4, theorem Z)."""
    for values in itertools.product((0, 1), repeat=count):
        got = list(values)
        for low, high in comparators(count):
            got[low], got[high] = sorted((got[low], got[high]))
        assert got == sorted(values)


# --- one method against another ---------------------------------------------------------------------------------------


def test_nearswap_is_a_clipped_delta():
    base, (x,) = family("fp32", 1, SHAPE)
    for t in (1e-3, 1e-7):
        assert_same_bits(merged("nearswap", [x], base, t=t), base + (x - base).clamp(-t, t))
    assert_same_bits(merged("nearswap", [x], base, t=0), base)
    assert_same_bits(merged("nearswap", [x], base, t=1), merged("task_arithmetic", [x], base, weight=1))


def test_means_and_medians():
    _, tensors = family("fp32", 5, SHAPE)
    for few in (1, 2):
        mean = merged("linear", tensors[:few], weight=1)
        assert_same_bits(merged("median", tensors[:few]), mean)
    assert_same_bits(merged("trimmed_mean", tensors, beta=0), merged("linear", tensors, weight=1))
    assert_same_bits(merged("trimmed_mean", tensors, beta=0.1), merged("linear", tensors, weight=1))  # int(0.5) = 0
    for k in (3, 4, 5):
        few = torch.stack(tensors[:k])
        assert_same_bits(merged("median", tensors[:k], even="lower"), few.median(dim=0).values)
        wanted = torch.from_numpy(np.median(few.numpy(), axis=0))
        assert_same_bits(merged("median", tensors[:k]), wanted)
        assert_same_bits(merged("trimmed_mean", tensors[:k], beta=(k - 1) // 2 / k), wanted)


def test_as_many_models_as_can_be_sorted():
    generator = torch.Generator().manual_seed(0)
    tensors = list(torch.randn(128, 600, generator=generator))
    wanted = torch.from_numpy(np.median(torch.stack(tensors).numpy(), axis=0))
    assert_same_bits(merged("median", tensors), wanted)
    trimmed = merged("trimmed_mean", tensors, beta=0.1)
    oracles.assert_accurate(trimmed, oracles_elementwise.trimmed_mean(tensors, beta=0.1), share=2.0**-19)
    assert merged("trimmed_mean", tensors, beta=0.008, nonfinite="propagate").isfinite().all()
    with pytest.raises(wm.UsageError, match="1-128 models, got 129"):
        merged("median", [*tensors, tensors[0]])


@pytest.mark.parametrize("nonfinite", ["error", "propagate"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_as_many_models_as_can_be_selected(dtype, nonfinite):
    tensors = list(torch.randn(256, 600, generator=torch.Generator().manual_seed(0), dtype=dtype))
    got = merged("sce", tensors, torch.zeros(600, dtype=dtype), select_topk=0.5, nonfinite=nonfinite)
    assert int((got != 0).sum()) == 300


def test_ram_of_changes_that_all_made_or_one():
    base, tensors = family("fp32", 4, SHAPE)
    moved = [base + 1 + t for t in tensors]
    mean = merged("task_arithmetic", moved, base, weight=1, normalize=True)
    assert_same_bits(merged("ram", moved, base), mean)
    assert_same_bits(merged("ramplus_tl", moved, base), mean)
    alone = [torch.where(torch.arange(83) % 4 == k, t, base) for k, t in enumerate(tensors)]
    assert_same_bits(merged("ram", alone, base, epsilon=0), merged("task_arithmetic", alone, base, weight=1))
    assert_same_bits(merged("ramplus_tl", alone, base, epsilon=0), merged("ram", alone, base, epsilon=0))


@pytest.mark.parametrize("nothing", [{"r": 0}, {"alpha": 0}])
def test_ramplus_without_amplification_is_ram(nothing):
    base, tensors = family("bf16", 3, SHAPE)
    options = {"epsilon": 2e-3}
    got = merged("ramplus_tl", tensors, base, **options, **nothing)
    assert_same_bits(got, merged("ram", tensors, base, **options))
    assert not torch.equal(got, merged("ramplus_tl", tensors, base, **options, r=5))


def test_ramplus_counts():
    """Model 0 has two unique elements and one that it shares, model 1 one of each."""
    base = torch.zeros(5)
    tensors = [torch.tensor([1.0, 1, 4, 0, 0]), torch.tensor([0.0, 0, 2, 1, 0])]
    options = {"r": 1.0, "alpha": 0.75}
    assert merged("ramplus_tl", tensors, base, **options).tolist() == [1.5, 1.5, 3, 1.75, 0]
    got = merged("ramplus_tl", tensors, base, overlap="changed", **options)
    assert got.tolist() == pytest.approx([4 / 3, 4 / 3, 3, 1.5, 0])


def test_consensus_of_no_task_is_task_arithmetic():
    base, tensors = family("bf16", 3, SHAPE)
    for weight in (1, weights(3)):
        got = merged("consensus_ta", tensors, base, k=0, weight=weight)
        assert_same_bits(got, merged("task_arithmetic", tensors, base, weight=weight))


def test_emr_of_tasks_that_do_not_meet():
    """Each gets its own model back."""
    base, tensors = family("fp32", 3, SHAPE)
    apart = [torch.where(torch.arange(83) % 3 == k, t, base) for k, t in enumerate(tensors)]
    for k in range(3):
        wanted = merged("task_arithmetic", [apart[k]], base, weight=1)
        assert_same_bits(merged("emr", apart, base, task=k + 1), wanted)
    assert_same_bits(merged("emr", apart, base), merged("task_arithmetic", apart, base, weight=1))


def test_emr_keeps_the_sum_of_changes_of_a_task():
    base, tensors = family("fp64", 4, SHAPE)
    for k, tensor in enumerate(tensors):
        got = merged("emr", tensors, base, task=k + 1)
        torch.testing.assert_close((got - base).abs().sum(), (tensor - base).abs().sum(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("dtype", ["bf16", "mixed64"])
def test_breadcrumbs_without_outliers_are_ties(dtype, normalize):
    base, tensors = family(dtype, 3, SHAPE)
    for options in (
        {"density": 0.37},
        {"density": densities(3), "rescale": "inverse_density"},
        {"elect": "unweighted"},
    ):
        options = {"weight": weights(3), "normalize": normalize, "lambda_": 0.7, **options}
        got = merged("breadcrumbs_ties", tensors, base, gamma=0, **options)
        assert_same_bits(got, merged("ties", tensors, base, **options))


def test_breadcrumbs_of_everything():
    base, tensors = family("bf16", 3, SHAPE)
    got = merged("breadcrumbs", tensors, base, weight=weights(3), gamma=0.3)
    assert_same_bits(got, merged("task_arithmetic", tensors, base, weight=weights(3)))


def test_sce_weighs_by_energy():
    """The threshold below which mergekit weighs all the same is an option; by default nothing is below it."""
    base = torch.zeros(4000)
    generator = torch.Generator().manual_seed(0)
    tensors = [(torch.rand(4000, generator=generator) + 0.5) * s for s in (5e-4, 1e-4)]
    energies = [float((t.double() ** 2).mean()) for t in tensors]
    shares = [e / sum(energies) for e in energies]
    for options, w in (({}, shares), ({"uniform_below": 1e-6}, [0.5, 0.5]), ({"uniform_below": 1e-8}, shares)):
        wanted = merged("task_arithmetic", tensors, base, weight=w)
        torch.testing.assert_close(merged("sce", tensors, base, **options), wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize("method", ["breadcrumbs", "breadcrumbs_ties"])
def test_a_density_of_zero_gives_the_base(method):
    base, tensors = family("bf16", 3, (31, 41))
    assert_same_bits(merged(method, tensors, base, weight=weights(3), density=0.0), base)
    only = merged(method, tensors, base, weight=weights(3), density=[0.0, 0.4, 0.0], gamma=0.1)
    assert_same_bits(only, merged(method, [tensors[1]], base, weight=weights(3)[1], density=0.4, gamma=0.1))


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("median", {}),
        ("trimmed_mean", {"beta": 0.3}),
        ("magmax", {"lambda_": 1.0}),
        ("ram", {"epsilon": 0.0}),
        ("ramplus_tl", {"epsilon": 0.0}),
        ("emr", {}),
        ("sce", {}),
    ],
)
def test_one_model_is_itself(method, options):
    base, (x,) = family("fp32", 1, (31, 41))
    if CASES[method].base:
        assert_same_bits(merged(method, [x], base, **options), merged("task_arithmetic", [x], base, weight=1))
    else:
        assert_same_bits(merged(method, [x], **options), x)


# --- what is not finite -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["median", "trimmed_mean-most", "magmax", "magmax-first", "emr", "ram", "nearswap"])
@pytest.mark.parametrize("first", [0, 1, 2])
def test_nan_shows_whoever_has_it(case, first):
    models = CASES[case].few
    tensors = [torch.tensor([1.0, 2.0, 3.0]) * (k + 1) for k in range(models)]
    tensors[first % models][1] = NAN
    got = CASES[case].merged(tensors, torch.zeros(3), nonfinite="propagate")
    assert got.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("method", ["breadcrumbs", "breadcrumbs_ties"])
def test_breadcrumbs_drop_nan_as_the_largest_change(method):
    tensors = [torch.arange(1.0, 21)]
    tensors[0][3] = NAN
    options = {"weight": 1, "gamma": 0.05, "nonfinite": "propagate"}
    for density, shows in ((0.5, False), (1.0, True)):
        assert bool(merged(method, tensors, torch.zeros(20), density=density, **options).isnan().any()) == shows


def test_infinities_that_win_or_lose():
    base = torch.zeros(1)
    tensors = [torch.tensor([v]) for v in (1.0, INF, -2.0)]
    options = {"nonfinite": "propagate"}
    assert merged("median", tensors, **options).tolist() == [1]
    assert merged("magmax", tensors, base, **options).tolist() == [INF]
    assert merged("emr", tensors, base, **options).tolist() == [INF]
    assert merged("nearswap", tensors[1:2], base, t=0.5, **options).tolist() == [0.5]


# --- bounds and equal values ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_breadcrumbs_keep_the_first_of_equal_magnitudes(dtype):
    """Ten changes of three sizes: those of one size go by their place, at both ends of what is kept."""
    x = torch.tensor([1, -2, 3, 2, -1, 3, 2, -3, 2, 1], dtype=dtype)
    base = torch.zeros_like(x)
    for density, gamma, kept in [
        (0.4, 0.1, [5, 7, 1, 3]),  # without the first 3, both others, the first two 2
        (0.3, 0.3, [1, 3, 6]),
        (0.3, 0.4, [3, 6, 8]),
        (0.5, 0.5, [6, 8, 0, 4, 9]),
        (0.7, 0.8, [1, 3, 6, 8, 0, 4, 9]),  # more than there are: fewer of the largest are dropped
        (0.1, 0.0, [2]),
        (0.05, 0.2, [7]),  # a density above 0 keeps one
        (1.0, 0.9, list(range(10))),
    ]:
        wanted = torch.zeros_like(x)
        wanted[kept] = x[kept]
        assert_same_bits(merged("breadcrumbs", [x], base, weight=1, density=density, gamma=gamma), wanted)
        assert_same_bits(merged("breadcrumbs_ties", [x], base, weight=1, density=density, gamma=gamma), wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_sce_selects_the_first_of_equal_variances(dtype):
    """Whatever the order of the models that make a variance: one differs by 3, others by 1 or not at all."""
    rows = [[1, 0, 0, 2, 3, 0, 1, 0], [0, 1, 0, 2, 0, 0, 0, 0], [0, 0, 1, 2, 0, 3, 1, 0]]
    tensors = [torch.tensor(r, dtype=dtype) for r in rows]
    base = torch.zeros(8, dtype=dtype)
    for share, kept in [(0.2, [4]), (0.34, [4, 5]), (0.5, [4, 5, 0]), (0.7, [4, 5, 0, 1]), (0.99, [4, 5, 0, 1, 2])]:
        got = merged("sce", tensors, base, select_topk=share)
        assert torch.nonzero(got).flatten().tolist() == sorted(kept)


def test_bounds_are_strict():
    base = torch.zeros(3)
    x, other = torch.tensor([0.25, 0.5, -0.25]), torch.tensor([1.0, 1.0, 1.0])
    assert merged("ram", [x, other], base, epsilon=0.25).tolist() == [1, 0.75, 1]
    got = merged("consensus_ta", [x, other], base, k=2, mask_lambda=[0.25, 0.0])
    assert got.tolist() == [0, 1.5, 0]
    assert merged("nearswap", [x], base, t=0.25).tolist() == [0.25, 0.25, -0.25]


def test_votes_and_magnitudes_that_are_equal():
    base = torch.zeros(3)
    x, y = torch.tensor([1.0, -2.0, 0.0]), torch.tensor([-1.0, 2.0, 0.0])
    assert merged("emr", [x, y], base).tolist() == [-1, -2, 0]
    assert merged("emr", [x, y], base, task=1).tolist() == pytest.approx([0, -3, 0])
    assert merged("sce", [x, y], base).tolist() == [1, 2, 0]
    assert merged("magmax", [x, y], base).tolist() == [-0.5, 1, 0]
    assert merged("magmax", [x, y], base, ties="first_model").tolist() == [0.5, -1, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_that_overflow_have_a_mean(dtype):
    """Of the largest numbers; the sums of smaller ones in other elements are divided as ever."""
    most = torch.finfo(dtype).max
    small = torch.randn(6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    factors = torch.tensor([0.99, 1, -1, 1, 0.98, 1], dtype=torch.float64)
    for sign in (1, -1):
        tensors = [torch.stack([sign * f * most, s]).to(dtype) for f, s in zip(factors, small, strict=True)]
        for case, options, middle in (("median", {}, slice(2, 4)), ("trimmed_mean", {"beta": 0.2}, slice(1, 5))):
            values = torch.stack(tensors).sort(dim=0).values[middle]
            got = merged(case, tensors, **options)
            assert_same_bits(got[1], sum(values[1:, 1], start=values[0, 1]) / len(values))
            torch.testing.assert_close(got[0], (values[:, 0] / len(values)).sum(), rtol=1e-6, atol=0)
    alike = [torch.full((1,), most * f, dtype=dtype) for f in (0.5, *[1] * 19)]
    assert merged("trimmed_mean", alike, beta=0.05).item() == most  # 18 times an 18th of it is more when rounded


def test_infinities_in_a_mean_of_the_middle():
    tensors = [torch.tensor([v, w]) for v, w in ((INF, INF), (INF, -INF), (1.0, INF), (0.0, -INF))]
    got = merged("median", tensors, nonfinite="propagate")
    assert got[0] == INF and got[1].isnan()


def test_signs_of_zero_in_a_median():
    tensors = [torch.tensor([v]) for v in (-0.0, 0.0, -0.0)]
    assert merged("median", tensors).item() == 0
    assert_same_bits(merged("median", [tensors[0]] * 3), tensors[0])
