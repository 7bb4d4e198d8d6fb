"""Inputs that are meant to hurt: ties without number, ties across tile borders, infinities, NaN, subnormals."""

import math

import pytest
import torch
from kernel_helpers import DTYPES, ISAS, assert_same_bits, cpu, family, merge, reference, run, signed, task, weights

COUNT = 20_011  # five blocks of the reduction order, 40 of the smallest tiles, and a rest; `select` draws a sample
CONFIGURATIONS = [(isa, 2, tile) for isa in ISAS for tile in (512, None)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def all_equal(count):
    return torch.full((count,), 0.5)


def alternating(count):
    return torch.tensor([0.5, -0.5]).repeat(count)[:count]


def nothing(count):
    return torch.zeros(count)


def few_values(count):
    return torch.randint(-2, 3, (count,), generator=generator()) * 0.25


def mostly_zero(count):
    return torch.where(torch.rand(count, generator=generator()) < 0.05, 0.25, 0.0)


def one_apart(count):
    """Neighbouring numbers: a threshold that is wrong by one bit shows."""
    step = torch.randint(0, 3, (count,), generator=generator(), dtype=torch.int32)
    return (torch.full((count,), 0.5).view(torch.int32) + step).view(torch.float32)


def clustered(count):
    """The largest values lie together, where a sample of places hardly looks."""
    d = torch.rand(count, generator=generator()) * 1e-3
    d[count // 3 : count // 3 + count // 50] += 10
    return d


def sorted_values(count):
    return torch.linspace(-1, 1, count)


def many_scales(count):
    exponent = torch.randint(-60, 60, (count,), generator=generator())
    return torch.randn(count, generator=generator()) * torch.exp2(exponent.float())


def subnormal(count):
    return torch.randint(-99, 100, (count,), generator=generator()) * 1e-45


DELTAS = [
    all_equal,
    alternating,
    nothing,
    few_values,
    mostly_zero,
    one_apart,
    clustered,
    sorted_values,
    many_scales,
    subnormal,
]


def compare(*arguments, configurations=CONFIGURATIONS, **parameters):
    wanted = merge(reference(), *arguments, **parameters)
    for configuration in configurations:
        assert_same_bits(merge(cpu(*configuration), *arguments, **parameters), wanted, configuration)
    return wanted


@pytest.mark.parametrize("policy", ["lowest_index", "keep_all"])
@pytest.mark.parametrize("dtype", ["bf16", "fp32", "fp64"])
@pytest.mark.parametrize("deltas", DELTAS)
def test_selection(deltas, dtype, policy):
    """A zero base makes the values themselves the deltas; the second model is the first one reversed."""
    values = deltas(COUNT).to(DTYPES[dtype])
    base = torch.zeros_like(values)
    tensors = [values, values.flip(0), (0.3 * values).roll(777)]
    tasks = [
        ("ties", tensors, base, {"weight": weights(3), "density": density, "ties": policy})
        for density in (1 / COUNT, 0.1, 0.5, 0.9, [0.999, 0.02, 0.6])
    ]
    wanted = run(reference(), *(task(*a, **p) for *a, p in tasks))
    for configuration in CONFIGURATIONS:
        got = run(cpu(*configuration), *(task(*a, **p) for *a, p in tasks))
        for (*_, parameters), one, other in zip(tasks, got, wanted, strict=True):
            assert_same_bits(one, other, (parameters["density"], configuration))


@pytest.mark.parametrize("border", [512, 4096, 8192])  # of a stage and the smallest tile, of a block, of a larger tile
def test_the_last_kept_tie_at_a_border(border):
    """Of equal magnitudes the first ones are kept: the cut falls before, on and behind the border."""
    base = torch.zeros(COUNT)
    for kept in range(border - 2, border + 3):
        density = (kept + 0.5) / COUNT
        wanted = compare("ties", [alternating(COUNT)], base, weight=1, density=density)
        assert int((wanted != 0).sum()) == int((wanted[:kept] != 0).sum()) == kept


def test_ties_in_one_tile_only():
    """Larger values everywhere, the ties in two far tiles: the budget ends in the second."""
    values = torch.where(torch.arange(COUNT) % 7 == 0, 2.0, 0.0)
    values[3000:3010] = 1
    values[15_000:15_010] = -1
    kept = int((values.abs() == 2).sum()) + 13
    got = compare("ties", [values], torch.zeros(COUNT), weight=1, density=(kept + 0.5) / COUNT)
    assert torch.nonzero(got.abs() == 1).flatten().tolist() == [*range(3000, 3010), *range(15_000, 15_003)]


def salted(dtype, models, kind):
    """Models and a base of which each has bad elements, some shared, in all positions of a vector."""
    base, tensors = family(dtype, models, 4099)
    bad = {"inf": [math.inf, -math.inf], "nan": [math.nan], "both": [math.nan, math.inf, -math.inf]}[kind]
    for k, tensor in enumerate([*tensors, base]):
        for i in range(40):
            tensor[(97 * i + 13 * k) % 4099] = bad[i % len(bad)]
            tensor[i * i] = bad[(i + k) % len(bad)]
    return base, tensors


NONFINITE = {
    "linear": {"weight": "weights"},
    "linear-sum": {"weight": "signed", "normalize": False},
    "task_arithmetic": {"weight": "signed"},
    "ties": {"weight": "weights", "density": 0.5},
    "ties-unweighted": {"weight": "signed", "density": [0.5, 1.0, 0.2], "normalize": False, "elect": "unweighted"},
    "dare_linear": {"weight": "weights", "density": 0.3, "rescale": False},
    "dare_linear-l1": {"weight": "weights", "density": 0.3},
    "dare_ties": {"weight": "weights", "density": 0.6, "rescale": "inverse_density"},
    "slerp": {"t": 0.3},
}


@pytest.mark.parametrize("policy", ["propagate", "base"])
@pytest.mark.parametrize("kind", ["inf", "nan", "both"])
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32", "fp64"])
@pytest.mark.parametrize("case", NONFINITE)
def test_not_finite(case, dtype, kind, policy):
    method, parameters = case.split("-")[0], dict(NONFINITE[case])
    base, tensors = salted(dtype, 2 if method == "slerp" else 3, kind)
    if "weight" in parameters:
        parameters["weight"] = {"weights": weights, "signed": signed}[parameters["weight"]](3)
    on_deltas = method not in ("linear", "slerp")
    compare(method, tensors, base if on_deltas else None, nonfinite=policy, **parameters)


@pytest.mark.parametrize("case", [c for c in NONFINITE if c not in ("slerp", "dare_linear-l1")])
def test_a_bad_element_stays_alone(case):
    """Propagated: NaN where an input is, whatever the vote, and nowhere else. Base: that delta counts as 0."""
    method, parameters = case.split("-")[0], dict(NONFINITE[case], density=1.0)
    if method in ("linear", "task_arithmetic"):
        del parameters["density"]
    base, tensors = family("fp32", 3, 1031)
    parameters["weight"] = {"weights": weights, "signed": signed}[parameters["weight"]](3)
    if method == "linear":
        base = None
    clean = merge(cpu(), method, tensors, base, **parameters)
    spoiled = [t.clone() for t in tensors]
    spoiled[0][7] = spoiled[1][500] = spoiled[2][1030] = math.nan
    places = [7, 500, 1030]
    got = compare(method, spoiled, base, nonfinite="propagate", **parameters)
    assert torch.nonzero(got.isnan()).flatten().tolist() == places
    others = ~got.isnan()
    assert_same_bits(got[others], clean[others])
    if base is not None:
        for k, place in enumerate(places):
            spoiled[k][place] = base[place]
        unchanged = merge(cpu(), method, spoiled, base, **parameters)
        for k, place in enumerate(places):
            spoiled[k][place] = math.nan
        assert_same_bits(compare(method, spoiled, base, nonfinite="base", **parameters), unchanged)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties", "dare_ties"])
def test_zeros_of_both_signs_and_subnormals(method, dtype):
    pool = torch.tensor([0.0, -0.0, 1e-45, -1e-45, 3e-39, 1e-7, -6e-8, 1.0]).to(DTYPES[dtype])
    index = torch.randint(0, len(pool), (4, 4099), generator=generator())
    base, *tensors = pool[index]
    parameters = {"weight": weights(3)}
    if method != "linear":
        base[:512] = -0.0
        parameters["density"] = 0.5
    if method == "task_arithmetic":
        del parameters["density"]
    compare(method, tensors, None if method == "linear" else base, **parameters)
