"""Methods that work on each element by itself: accuracy, one method against another, symmetries, backends.

The oracles (oracles_elementwise.py) sort, loop and sum in extended precision.
"""

import oracles_elementwise
import pytest
import torch
import warpmerge as wm
from kernel_helpers import ALL_DTYPES, DTYPES, assert_same_bits, densities, family, signed, weights
from oracles import assert_accurate

SHAPE = (61, 83)  # a block of the reduction order and a rest, no multiple of 8
MODELS = (1, 2, 3, 5, 9)
BACKENDS = ("torch",)
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
