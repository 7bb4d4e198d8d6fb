"""Methods that work on each element by itself: accuracy, one method against another, symmetries, backends.

The oracles (oracles_elementwise.py) sort, loop and sum in extended precision.
"""

import itertools

import numpy as np
import oracles_elementwise
import pytest
import torch
import warpmerge as wm
from kernel_helpers import (
    ALL_DTYPES,
    assert_same_bits,
    cpu,
    densities,
    family,
    reference,
    run,
    signed,
    task,
    values_of,
    weights,
)
from oracles import assert_accurate
from warpmerge.methods import find
from warpmerge.methods.order import comparators

SHAPE = (61, 83)  # a block of the reduction order and a rest, no multiple of 8
MODELS = (1, 2, 3, 5, 9)
BACKENDS = ("cpu", "torch")
MOST_UNSURE = 0.002  # votes and choices so near to a bound that rounding may turn them

ALONE = {
    "median": lambda k: {},
    "median-lower": lambda k: {"even": "lower"},
    "trimmed_mean": lambda k: {"beta": 0.3},
    "trimmed_mean-none": lambda k: {"beta": 0.0},
    "trimmed_mean-most": lambda k: {"beta": 0.49},
}
RELATIVE = {
    "magmax": lambda k: {},
    "magmax-first": lambda k: {"lambda_": -1.3, "ties": "first_model"},
    "ram": lambda k: {},
    "ram-epsilon": lambda k: {"epsilon": 2e-3},
    "ramplus_tl": lambda k: {"epsilon": 2e-3},
    "ramplus_tl-changed": lambda k: {"epsilon": 2e-3, "r": 0.7, "alpha": 0.9, "overlap": "changed"},
    "consensus_ta": lambda k: {"k": min(k, 2)},
    "consensus_ta-weights": lambda k: {"k": 1, "weight": signed(k), "mask_lambda": densities(k), "lambda_": 0.3},
    "consensus_ta-all": lambda k: {"k": k, "mask_lambda": 0.25},
    "emr": lambda k: {},
    "emr-first": lambda k: {"task": 1},
    "emr-last": lambda k: {"task": k},
    "breadcrumbs": lambda k: {"weight": weights(k), "density": 0.7},
    "breadcrumbs-dense": lambda k: {"weight": signed(k), "gamma": 0.5},
    "breadcrumbs-mixed": lambda k: {"weight": weights(k), "density": densities(k), "gamma": 0.1, "normalize": True},
    "breadcrumbs-gammas": lambda k: {
        "weight": 1,
        "density": 0.5,
        "gamma": [0.3, 0.0, 1.0, 0.5, 0.01, 0.2, 0.6, 0, 1][:k],
    },
    "breadcrumbs-l1": lambda k: {"weight": signed(k), "density": densities(k), "gamma": 0.05, "rescale": True},
    "breadcrumbs-inverse": lambda k: {"weight": 1, "density": 0.4, "rescale": "inverse_density", "lambda_": 0.6},
    "breadcrumbs_ties": lambda k: {"weight": weights(k), "density": 0.7},
    "breadcrumbs_ties-mixed": lambda k: {
        "weight": weights(k),
        "density": densities(k),
        "gamma": 0.2,
        "normalize": True,
    },
    "breadcrumbs_ties-l1": lambda k: {"weight": signed(k), "density": 0.3, "gamma": 0.1, "rescale": True},
    "breadcrumbs_ties-count": lambda k: {"weight": 1, "density": 0.6, "elect": "unweighted", "divisor": "count"},
    "sce": lambda k: {},
    "sce-selected": lambda k: {"select_topk": 0.3},
    "sce-authors": lambda k: {"select_topk": 0.6, "sce_mask_merge": False},
    "sce-uniform": lambda k: {"select_topk": 0.57, "uniform_below": 1.0, "int8_mask": True},
    "sce-nothing": lambda k: {"select_topk": 0.0},
}


def combinations(cases):
    for name in cases:
        for k in MODELS:
            for dtype in ALL_DTYPES:
                if not (dtype.startswith("mixed") and k in (2, 9)):
                    yield pytest.param(name, k, dtype, id=f"{name}-{k}-{dtype}")


def merged(case, tensors, base=None, **parameters):
    """The result, which is the same on all backends."""
    method = case.split("-")[0]
    results = [wm.merge_tensors(tensors, method, base=base, backend=b, **parameters) for b in BACKENDS]
    for other in results[1:]:
        assert_same_bits(results[0], other, case)
    return results[0]


def expected(case, *operands, **parameters):
    return oracles_elementwise.METHODS[case.split("-")[0]](*operands, **parameters)


@pytest.mark.parametrize(("case", "models", "dtype"), list(combinations(ALONE)))
def test_without_base(case, models, dtype):
    parameters = ALONE[case](models)
    _, tensors = family(dtype, models, SHAPE)
    assert_accurate(merged(case, tensors, **parameters), expected(case, tensors, **parameters))


@pytest.mark.parametrize(("case", "models", "dtype"), list(combinations(RELATIVE)))
def test_with_base(case, models, dtype):
    parameters = RELATIVE[case](models)
    base, tensors = family(dtype, models, SHAPE)
    got = merged(case, tensors, base, **parameters)
    assert_accurate(got, expected(case, tensors, base, **parameters), most_unsure=MOST_UNSURE)


@pytest.mark.parametrize("t", [0.0, 1e-9, 1e-4, 2e-3, 10.0])
@pytest.mark.parametrize("dtype", ALL_DTYPES)
def test_nearswap(dtype, t):
    base, tensors = family(dtype, 1, SHAPE)
    assert_accurate(merged("nearswap", tensors, base, t=t), expected("nearswap", tensors, base, t=t))


# --- backends and passes ----------------------------------------------------------------------------------------------

EVERY = {name: (3, False, make) for name, make in ALONE.items()}
EVERY |= {name: (3, True, make) for name, make in RELATIVE.items()}
EVERY["nearswap"] = (1, True, lambda k: {"t": 1e-3})


@pytest.mark.parametrize("case", [c for c in EVERY if "-" not in c or c.startswith("sce")])
def test_tiles_and_threads(case):
    models, given, parameters = EVERY[case]
    made = []
    for dtype, shape in itertools.product(["bf16", "fp32", "mixed64"], [0, 1, 7, 4099]):
        base, tensors = family(dtype, models, shape)
        made.append((case.split("-")[0], tensors, base if given else None))
    wanted = run(reference(), *(task(*m, **parameters(models)) for m in made))
    got = run(cpu(threads=2, tile=512), *(task(*m, **parameters(models)) for m in made))
    for one, other in zip(got, wanted, strict=True):
        assert_same_bits(one, other, case)


@pytest.mark.parametrize("case", EVERY)
def test_passes_are_the_requests_that_are_made(case):
    models, given, make = EVERY[case]
    method, parameters = find(case.split("-")[0]), make(models)
    base, tensors = family("fp32", models, 1031)
    asked = []

    class Counting(type(reference())):
        def launch(self, work):
            asked.extend(request for _, request in work)
            return super().launch(work)

    run(Counting(), task(method.name, tensors, base if given else None, **parameters))
    assert len(asked) == method.passes(values_of(method.name, models, parameters))


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
    assert_accurate(
        merged("trimmed_mean", tensors, beta=0.1), expected("trimmed_mean", tensors, beta=0.1), share=2.0**-19
    )
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


# --- symmetries -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [c for c in EVERY if "first" not in c and "last" not in c and "gammas" not in c])
def test_order_of_the_models(case):
    models, given, make = EVERY[case]
    parameters = make(models)
    base, tensors = family("fp64", models, SHAPE)
    order = [*range(1, models), 0]
    moved = {n: [v[i] for i in order] if isinstance(v, list) else v for n, v in parameters.items()}
    got = merged(case, [tensors[i] for i in order], base if given else None, **moved)
    wanted = merged(case, tensors, base if given else None, **parameters)
    torch.testing.assert_close(got, wanted, rtol=1e-13, atol=1e-15)
    if case in ("median", "median-lower", "trimmed_mean-most", "magmax", "emr"):
        assert_same_bits(got, wanted)


@pytest.mark.parametrize("power", [-20, 30])
@pytest.mark.parametrize("case", EVERY)
def test_scale(case, power):
    """All models and all bounds times a power of two: so is the result, to the last bit."""
    models, given, make = EVERY[case]
    base, tensors = family("fp64", models, SHAPE)
    parameters = make(models)
    if "ram" in case:
        parameters = {"epsilon": 1e-5} | parameters
    scaled = parameters | {n: parameters[n] * 2.0**power for n in ("t", "epsilon") if n in parameters}
    scaled |= {n: parameters[n] * 4.0**power for n in ("uniform_below",) if n in parameters}
    wanted = merged(case, tensors, base if given else None, **parameters) * 2.0**power
    got = merged(case, [t * 2.0**power for t in tensors], base * 2.0**power if given else None, **scaled)
    assert_same_bits(got, wanted)
