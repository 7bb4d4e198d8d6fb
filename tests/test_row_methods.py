"""Methods that look at rows, columns and ranks: accuracy, what they do to odd tensors, one against another."""

import numpy as np
import oracles
import oracles_rows
import pytest
import torch
import warpmerge as wm
from helpers import array, llama, read_model, write_model
from kernel_helpers import (
    ALL_DTYPES,
    DTYPES,
    assert_same_bits,
    family,
    reference,
    run,
    signed,
    task,
    values_of,
    weights,
)
from oracles import assert_accurate
from test_gram_methods import related
from warpmerge.errors import CheckpointError, RecipeError
from warpmerge.methods import find

SHAPE = (61, 83)
NAME, SEED = "model.layers.0.mlp.up_proj.weight", 7
EMBEDDING = "model.embed_tokens.weight"
MOST_UNSURE = 0.003  # elements within oracles_rows.NEAR of a threshold, or votes near zero

# Each with the number of models, and whether there is a base.
CASES = {
    "della": (3, True, {"weight": weights(3), "density": 0.5}),
    "della-mixed": (5, True, {"weight": weights(5), "density": [0.5, 0.2, 1.0, 0.8, 0.0], "epsilon": 0.1}),
    "della-paper": (2, True, {"weight": 1, "density": 0.4, "rescale": "inverse_probability", "epsilon": [0.1, 0.3]}),
    "della-bare": (3, True, {"weight": signed(3), "density": 0.7, "rescale": False, "normalize": False}),
    "della-unweighted": (3, True, {"weight": weights(3), "density": 0.6, "elect": "unweighted", "divisor": "count"}),
    "della-dense": (3, True, {"weight": weights(3)}),
    "della_linear": (3, True, {"weight": weights(3), "density": 0.5}),
    "della_linear-negative": (2, True, {"weight": signed(2), "density": 0.3, "lambda_": 0.7, "epsilon": 0.0}),
    "della_linear-paper": (1, True, {"weight": 1, "density": 0.3, "rescale": "inverse_probability"}),
    "della_linear-count": (3, True, {"weight": weights(3), "density": 0.3, "divisor": "count", "normalize": True}),
    "della_linear-nothing": (2, True, {"weight": 1, "density": 0.0}),
    "arcee_fusion": (1, True, {}),
    "pcb": (3, True, {}),
    "pcb-one": (1, True, {"lambda_": 1.2}),
    "pcb-many": (5, True, {"ratio": 0.4, "lambda_": -0.5}),
    "pcb-all": (2, True, {"ratio": 1}),
    "pcb-nothing": (2, True, {"ratio": 0}),
    "widen": (3, True, {}),
    "widen-options": (2, True, {"ratio": 1.4, "calibration": 0.7}),
    "widen-embedding": (3, True, {"name": EMBEDDING}),
    "widen-one": (1, True, {}),
    "nuslerp-rows": (2, True, {"weight": [1, 2], "nuslerp_flatten": False}),
    "nuslerp-rows-alone": (2, False, {"weight": [0.7, 0.3], "nuslerp_flatten": False}),
    "nuslerp-rows-beyond": (2, True, {"weight": [-0.3, 1.3], "nuslerp_flatten": False}),
    "nuslerp-columns": (2, True, {"weight": [1, 2], "nuslerp_flatten": False, "nuslerp_row_wise": True}),
    "nuslerp-columns-alone": (2, False, {"weight": [3, 1], "nuslerp_flatten": False, "nuslerp_row_wise": True}),
    "model_stock-rows": (2, True, {"filter_wise": True}),
    "model_stock-rows-many": (5, True, {"filter_wise": True}),
}
# Of the largest operand: angles, rows' factors and the L1 norms that are restored come from float32 terms.
SHARES = {"nuslerp": oracles.SPHERICAL, "model_stock": 3e-7, "della": 3e-7, "della_linear": 3e-7}
DRAWN = ("della", "della_linear")


def method_of(case):
    return case.split("-")[0]


def drawing(case):
    return {"name": NAME, "seed": SEED} if method_of(case) in DRAWN else {}


def merged(case, tensors, base, backend="torch", **options):
    _, given, parameters = CASES[case]
    options = parameters | drawing(case) | options
    return wm.merge_tensors(tensors, method_of(case), base=base if given else None, backend=backend, **options)


def expected(case, tensors, base):
    _, given, parameters = CASES[case]
    oracle = oracles_rows.METHODS[method_of(case)]
    return oracle(tensors, *([base] if given else []), **parameters, **drawing(case))


def check(case, got, wanted, dtype="fp32"):
    share = SHARES.get(method_of(case)) if dtype != "fp64" else 1e-13
    assert_accurate(got, wanted, share=share, most_unsure=MOST_UNSURE)


@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_accuracy(case, dtype):
    for make in (family, related) if dtype in ("bf16", "fp32") else (related,):
        base, tensors = make(dtype, CASES[case][0], SHAPE)
        check(case, merged(case, tensors, base), expected(case, tensors, base), dtype)


@pytest.mark.parametrize("shape", [(4, 3, 5), (1, 9), (9, 1), (2, 4099), (300, 2)], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_shapes(case, shape):
    base, tensors = family("fp32", CASES[case][0], shape)
    got = merged(case, tensors, base)
    assert_accurate(got, expected(case, tensors, base), share=SHARES.get(method_of(case)), most_unsure=0.04)


@pytest.mark.parametrize("case", CASES)
def test_passes_are_the_requests_that_are_made(case):
    models, given, parameters = CASES[case]
    method = find(method_of(case))
    base, tensors = family("fp32", models, (13, 17))
    asked = []

    class Counting(type(reference())):
        def launch(self, work):
            asked.extend(request for _, request in work)
            return super().launch(work)

    parameters = {n: v for n, v in parameters.items() if n != "name"}
    run(Counting(), task(method.name, tensors, base if given else None, **parameters))
    assert len(asked) == method.passes(values_of(method.name, models, parameters))


# --- odd tensors ----------------------------------------------------------------------------------------------------


def tensor(*values):
    return torch.tensor(values, dtype=torch.float32)


ONE = tensor([1, 2, -2, 0.5], [0.25, -3, 1, 1])
RIGHT = tensor([0, 3, 0, 0], [1, 0, 0, 0])
ODD = {
    "identical": (ONE, ONE, ONE),
    "zero": (ONE * 0, ONE * 0, ONE * 0),
    "one zero": (ONE, ONE * 0, ONE),
    "parallel": (ONE, 2 * ONE, 3 * ONE),
    "antiparallel": (ONE, -ONE, ONE),
    "right angles": (ONE * tensor([1], [0]), RIGHT, ONE * tensor([0], [1])),
    "one row is the same": (ONE, ONE * tensor([1], [2]), ONE * tensor([1], [-1])),
    "one element": (tensor([3]), tensor([-1]), tensor([2])),
    "one column": (tensor([3], [1], [-4]), tensor([-1], [2], [5]), tensor([2], [2], [2])),
    "a vector": (ONE[0], ONE[1], RIGHT[0]),
    "a vector of one": (tensor(3), tensor(-1), tensor(2)),
    "no dimension": (torch.tensor(3.0), torch.tensor(-1.0), torch.tensor(2.0)),
    "empty": (torch.empty(0, 3),) * 3,
    "empty rows": (torch.empty(3, 0),) * 3,
    "four dimensions": (ONE.view(2, 1, 2, 2), RIGHT.view(2, 1, 2, 2), -ONE.view(2, 1, 2, 2)),
    "subnormal": (ONE * 1e-44, RIGHT * 1e-43, -ONE * 1e-45),
    "tiny": (ONE * 1e-30, RIGHT * 1e-30, ONE * -3e-30),
    "huge": (ONE * 3e37, RIGHT * 1e37, ONE * -1e37),
    "tiny rows beside huge ones": (ONE * tensor([1e-19], [1e19]), RIGHT * tensor([1e-19], [1e19]), ONE),
}
# Where an oracle's own rule is a quotient of roundings: scores of a few equal elements, divergences of shifted rows.
LOOSE = ("pcb", "arcee_fusion", "widen", "della", "della_linear")


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("case", CASES)
def test_odd_tensors(case, kind):
    """No error, no NaN, the same shape and, where there are angles, what the oracle says."""
    models, given, _ = CASES[case]
    tensors = [ODD[kind][i % 3].clone() for i in range(models)]
    for base in [torch.zeros_like(tensors[0]), torch.ones_like(tensors[0])] if given else [None]:
        if base is not None and base.any():
            tensors = [t + base for t in tensors]
        got = merged(case, tensors, base)
        assert (got.shape, got.dtype) == (tensors[0].shape, torch.float32)
        assert got.isfinite().all() or kind == "huge"
        if method_of(case) not in LOOSE and got.numel():
            assert_accurate(got, expected(case, tensors, base), share=oracles.SPHERICAL)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_a_frozen_tensor_keeps_its_bits(case, dtype):
    """Also -0, subnormals, large weights, one row or element; and NaN, as in a mask."""
    models = CASES[case][0]
    values = torch.tensor([[-0.0, 0.0, 0.1], [-6e-8, 3.0, 1e-45], [90.0, -1e4, -7.7]], dtype=torch.float64)
    nan = torch.tensor([[float("nan"), -float("inf")], [-0.0, 1.0]])
    for frozen in (values, values * 0, values.flatten(), nan, values[:1], values[:, :1], values[0, 0], values[:0]):
        frozen = frozen.to(DTYPES[dtype])
        assert_same_bits(merged(case, [frozen.clone() for _ in range(models)], frozen.clone()), frozen)


@pytest.mark.parametrize("case", [c for c in CASES if CASES[c][1] and not c.endswith(("-paper", "-dense"))])
def test_no_lambda_is_the_base(case):
    if "lambda" in find(method_of(case)).by_name:
        base, tensors = family("bf16", CASES[case][0], (5, 7))
        base[0, 0] = -0.0
        assert_same_bits(merged(case, tensors, base, lambda_=0.0), base)


@pytest.mark.parametrize("case", CASES)
def test_nan_and_infinity(case):
    models, given, _ = CASES[case]
    base, tensors = family("fp32", models, (7, 9))
    tensors[0][2, 3], tensors[0][5, 1] = float("nan"), float("inf")
    with pytest.raises(CheckpointError, match="2 of 63"):
        merged(case, tensors, base)
    there = torch.ones(7, 9, dtype=torch.bool)
    there[2, 3] = there[5, 1] = False
    assert merged(case, tensors, base, nonfinite="propagate")[there].isfinite().all()
    if not given:
        with pytest.raises(RecipeError, match="no base"):
            merged(case, tensors, base, nonfinite="base")
        return
    repaired = [torch.where(t.isfinite(), t, base) for t in tensors]
    got = merged(case, tensors, base, nonfinite="base")
    assert_same_bits(got, merged(case, repaired, base))


@pytest.mark.parametrize(
    "case", ["arcee_fusion", "pcb", "widen", "nuslerp-rows", "nuslerp-columns", "model_stock-rows"]
)
def test_nan_spoils_its_element_only(case):
    base, tensors = family("fp32", CASES[case][0], (7, 9))
    tensors[0][2, 3] = float("nan")
    got = merged(case, tensors, base, nonfinite="propagate")
    assert got[2, 3].isnan() and int(got.isnan().sum()) == 1


# --- drops by rank --------------------------------------------------------------------------------------------------


def kept(shape, density, epsilon, *, models=1, seed=0, name="w"):
    """Masks of what stays of increasing magnitudes in each row, of several models."""
    columns = shape[-1]
    d = torch.arange(1.0, columns + 1).expand(shape).clone()
    options = {"density": density, "epsilon": epsilon, "rescale": False, "seed": seed, "name": name}
    base = torch.zeros(shape)
    zero = [0.0] * models
    one = [[*zero[:k], 1.0, *zero[k + 1 :]] for k in range(models)]
    return [
        wm.merge_tensors([d] * models, "della_linear", base=base, backend="torch", weight=w, **options) != 0
        for w in one
    ]


def test_keep_rates_follow_the_rank():
    rows, columns, density, epsilon = 40_000, 9, 0.4, 0.3
    (mask,) = kept((rows, columns), density, epsilon)
    wanted = density - epsilon + 2 * epsilon * np.arange(columns) / (columns - 1)
    error = np.abs(mask.double().mean(0).numpy() - wanted)
    assert (error < 5 * np.sqrt(wanted * (1 - wanted) / rows)).all()


def test_drops_are_independent_of_each_other():
    shape, q = (5_000, 8), 0.5
    first, second = kept(shape, q, 0.0, models=2)
    (seeded,) = kept(shape, q, 0.0, seed=1)
    (renamed,) = kept(shape, q, 0.0, name="v")
    flat = first.flatten()
    for a, b in [(first, second), (first, seeded), (first, renamed), (flat[1:], flat[:-1])]:
        both = (a & b).double().mean().item()
        assert abs(both - q * q) < 5 * np.sqrt(q * q * (1 - q * q) / a.numel())
    assert torch.equal(first, kept(shape, q, 0.0)[0])


def test_inverse_probabilities_are_unbiased():
    """The mean of many merges is the delta, for small elements and large ones."""
    d = torch.arange(1.0, 10).expand(40_000, 9).clone()
    options = {"weight": 1, "density": 0.4, "epsilon": 0.3, "rescale": "inverse_probability", "name": "w", "seed": 3}
    got = wm.merge_tensors([d], "della_linear", base=torch.zeros_like(d), backend="torch", **options).double()
    q = 0.1 + 0.6 * torch.arange(9, dtype=torch.float64) / 8
    assert ((got.mean(0) / d[0] - 1).abs() < 5 * ((1 - q) / q / 40_000).sqrt()).all()


def test_equal_magnitudes_rank_by_their_place():
    """Among zeros and equal elements the first is lower; -0 is a 0, and the sign does not count."""
    d = tensor([2, -2, 0, -0.0, 2, 1]).expand(60_000, 6).clone()
    options = {"weight": 1, "density": 0.5, "epsilon": 0.45, "rescale": False, "name": "w"}
    got = wm.merge_tensors([d], "della_linear", base=torch.zeros_like(d), backend="torch", **options) != 0
    rates = got.double().mean(0).tolist()
    rank = [3, 4, None, None, 5, 2]
    for rate, r in zip(rates, rank, strict=True):
        assert rate == pytest.approx(0 if r is None else 0.05 + 0.9 * r / 5, abs=0.012)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(("by_rank", "at_random"), [("della", "dare_ties"), ("della_linear", "dare_linear")])
def test_without_a_window_della_is_dare(by_rank, at_random, normalize):
    base, tensors = family("bf16", 3, SHAPE)
    options = {"weight": weights(3), "density": [0.5, 0.25, 0.75], "normalize": normalize, "name": NAME, "seed": SEED}
    got = wm.merge_tensors(tensors, by_rank, base=base, backend="torch", epsilon=0, **options)
    assert_same_bits(got, wm.merge_tensors(tensors, at_random, base=base, backend="torch", **options))


def test_a_density_of_1_drops_nothing():
    base, tensors = family("fp32", 3, SHAPE)
    options = {"base": base, "weight": weights(3)}
    dense = wm.merge_tensors(tensors, "della", **options)
    assert_same_bits(dense, wm.merge_tensors(tensors, "ties", **options))
    linear = wm.merge_tensors(tensors, "della_linear", **options)
    assert_same_bits(linear, wm.merge_tensors(tensors, "task_arithmetic", **options))


# --- fusion ---------------------------------------------------------------------------------------------------------


def test_fusion_takes_elements_of_either_model():
    base, (model,) = family("bf16", 1, SHAPE)
    got = merged("arcee_fusion", [model], base)
    assert ((got == base) | (got == model)).all()
    taken = (got != base).double().mean().item()
    assert 0.01 < taken < 0.2


def test_fusion_of_shifted_rows():
    """A row's softmax does not change when all its elements move by as much: all importances are 0, and all pass."""
    base = family("fp32", 1, (5, 8))[0]
    for model in (base + 0.25, base + tensor([0.5], [0], [-2], [1], [90])):
        torch.testing.assert_close(merged("arcee_fusion", [model], base), model, rtol=1e-6, atol=1e-6)
    column = base[:, :1].contiguous()
    assert_same_bits(merged("arcee_fusion", [column + 1], column), column + 1)


@pytest.mark.parametrize("scale", [40, 3000, 1e30])
def test_fusion_of_large_weights(scale):
    """Their exponentials are beyond float32, as with the biases of some attention layers."""
    base, (model,) = family("fp32", 1, (41, 53), sigma=0.01)
    base, model = base * scale, model * scale
    assert_accurate(merged("arcee_fusion", [model], base), oracles_rows.arcee_fusion([model], base), most_unsure=0.01)


def test_quartiles_are_elements():
    """All in one row, so importances order as magnitudes: of 1 to 9 the quartiles are 3, 5 and 7, the threshold 11."""
    base = torch.zeros(12)
    model = tensor(1, 2, 3, 4, 5, 6, 7, 8, 9, 11.5, 0, 0) * 1e-3
    got = merged("arcee_fusion", [model], base)
    # Sorted: 0 0 1 2 3 4 5 6 7 8 9 11.5; at floor(q * 11) = 2, 5, 8 are 1, 4 and 7; 4 + 1.5 * (7 - 1) = 13.
    assert not got.any()
    model[9] = 13.5e-3
    assert torch.nonzero(merged("arcee_fusion", [model], base)).flatten().tolist() == [9]


# --- parameter competition ------------------------------------------------------------------------------------------


def test_pcb_of_one_model_keeps_what_competes():
    base, (model,) = family("fp64", 1, 20_000)
    d = model - base
    got = wm.merge_tensors([model], "pcb", base=base, backend="torch", ratio=0.25) - base
    count = int((got != 0).sum())
    assert count == pytest.approx(0.25 * d.numel(), abs=2)
    assert got[d.abs() < d.abs().median()].abs().max() == 0
    inside = d.abs() < d.abs().sort().values[-3]  # the largest are clamped
    chosen = (got != 0) & inside
    torch.testing.assert_close(got[chosen], d[chosen], rtol=1e-9, atol=1e-15)


def test_pcb_prefers_those_who_agree():
    """Two models move the same elements to the same side, a third one as far to the other."""
    generator = torch.Generator().manual_seed(0)
    move = torch.randn(4000, generator=generator)
    base = torch.zeros(4000)
    got = wm.merge_tensors([move, move, -move], "pcb", base=base, backend="torch", ratio=0.2)
    large = move.abs() > move.abs().quantile(0.85)
    assert (got[large].sign() == move[large].sign()).all()
    opposed = wm.merge_tensors([move, -move], "pcb", base=base, backend="torch", ratio=0.2)
    assert not opposed.any()  # all scores are 0


# --- weight disentanglement -----------------------------------------------------------------------------------------


def test_widen_takes_rows_of_embeddings_as_columns_of_others():
    base, tensors = family("fp64", 3, (23, 31))
    got = wm.merge_tensors(tensors, "widen", base=base, backend="torch", name=EMBEDDING)
    turned = [t.T.contiguous() for t in tensors]
    wanted = wm.merge_tensors(turned, "widen", base=base.T.contiguous(), backend="torch", name="model.w")
    torch.testing.assert_close(got, wanted.T, rtol=1e-13, atol=1e-16)


def test_widen_by_hand():
    """Two columns: the one that changed more is taken whole, of the other both models have a half."""
    base = tensor([1, 0], [0, 2])
    first, second = tensor([1, 0], [0, 8]), tensor([5, 0], [0, 2])
    got = wm.merge_tensors([first, second], "widen", base=base, backend="torch", ratio=1.0)
    # Norms: the first model changed the second column, the second model the first. No direction changed, so in both
    # models the second column is the higher of equal ones. e^0 / (e^0 + e^0.5) = 0.3775.
    low = 1 / (1 + np.exp(0.5))
    share = {"first": [(low + 0.5) / 2, 1.0], "second": [(1 + 0.5) / 2, (low + 1) / 2]}
    # Of the first model column 0 has rank 0 in norm (beside rank 1 of the other), of the second column 1.
    wanted = base + tensor([4 * share["second"][0], 0], [0, 6 * share["first"][1]])
    torch.testing.assert_close(got, wanted)


def test_widen_does_not_depend_on_threads():
    base, tensors = family("fp32", 2, (700, 65))
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(merged("widen", tensors[:2] + tensors[:1], base))
    torch.set_num_threads(before)
    assert_same_bits(results[0], results[1])
    assert_same_bits(results[0], results[2])


# --- spheres --------------------------------------------------------------------------------------------------------

ROWS = {"weight": [1, 3], "nuslerp_flatten": False, "backend": "torch"}
COLUMNS = ROWS | {"nuslerp_row_wise": True}


def test_each_row_is_a_tensor_by_itself():
    base, tensors = family("fp32", 2, (6, 50), sigma=0.02)
    got = wm.merge_tensors(tensors, "nuslerp", base=base, **ROWS)
    for r in range(6):
        alone = wm.merge_tensors([t[r] for t in tensors], "nuslerp", base=base[r], weight=[1, 3])
        torch.testing.assert_close(got[r], alone, rtol=1e-6, atol=1e-8)
    columns = wm.merge_tensors([t.T.contiguous() for t in tensors], "nuslerp", base=base.T.contiguous(), **COLUMNS)
    torch.testing.assert_close(columns.T, got, rtol=1e-6, atol=1e-8)
    stock = wm.merge_tensors(tensors, "model_stock", base=base, filter_wise=True, backend="torch")
    for r in range(6):
        alone = wm.merge_tensors([t[r] for t in tensors], "model_stock", base=base[r])
        torch.testing.assert_close(stock[r], alone, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("options", [ROWS, COLUMNS])
def test_a_vector_is_one_row(options):
    base, tensors = family("fp32", 2, 50)
    flat = wm.merge_tensors(tensors, "nuslerp", base=base, weight=[1, 3], backend="torch")
    assert_same_bits(wm.merge_tensors(tensors, "nuslerp", base=base, **options), flat)
    stock = wm.merge_tensors(tensors, "model_stock", base=base, filter_wise=True, backend="torch")
    assert_same_bits(stock, wm.merge_tensors(tensors, "model_stock", base=base, backend="torch"))


@pytest.mark.parametrize("options", [ROWS, COLUMNS])
def test_ends_and_opposite_rows(options):
    _, (a, b) = family("fp32", 2, (6, 50), sigma=0.02)
    for weight, end in (([1, 0], a), ([0, 1], b)):
        assert torch.equal(wm.merge_tensors([a, b], "nuslerp", **options | {"weight": weight}), end)
    middle = wm.merge_tensors([a, -3 * a], "nuslerp", **options)
    assert_same_bits(middle, a * 0.25 + -3 * a * 0.75)


def test_stock_of_identical_rows_is_the_model():
    base, (model,) = family("fp32", 1, (6, 50))
    got = wm.merge_tensors([model] * 3, "model_stock", base=base, filter_wise=True, backend="torch")
    torch.testing.assert_close(got, model, rtol=3e-7, atol=1e-9)
    model[2] = base[2]
    got = wm.merge_tensors([model] * 3, "model_stock", base=base, filter_wise=True, backend="torch")
    assert_same_bits(got[2], base[2])


# --- symmetries, refusals, recipes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case", ["pcb", "pcb-many", "widen", "model_stock-rows-many", "nuslerp-rows", "nuslerp-columns"]
)
def test_order_of_the_models(case):
    models, _, parameters = CASES[case]
    base, tensors = related("fp64", models)
    order = [*range(1, models), 0]
    moved = {n: [v[i] for i in order] for n, v in parameters.items() if isinstance(v, list)}
    got = merged(case, [tensors[i] for i in order], base, **moved)
    torch.testing.assert_close(got, merged(case, tensors, base), rtol=1e-12, atol=1e-14)


REFUSED = [
    ("della", 2, {"weight": 1, "density": 0.1}, r"density 0\.1 with epsilon 0\.15 .* set epsilon below 0\.1"),
    ("della", 2, {"weight": 1, "density": 0.85}, r"from 0\.7 to 1, .* set epsilon below 0\.15"),
    ("della_linear", 2, {"weight": 1, "density": [0.5, 0.8], "epsilon": [0.3, 0.25]}, "set epsilon below 0.2"),
    ("della", 2, {"weight": 1, "density": 0.5, "epsilon": -0.1}, "'epsilon': expected a number >= 0"),
    ("della", 2, {"weight": 1, "density": 1.5}, r"number in \[0, 1\]"),
    ("della", 2, {"weight": [1, -1], "density": 0.5}, "negative weight"),
    ("della", 2, {"weight": 1, "rescale": "inverse_density"}, "l1, inverse_probability, false"),
    ("della", 2, {"density": 0.5}, "needs the parameter 'weight'"),
    ("arcee_fusion", 2, {}, "exactly 1 model besides the base, got 2"),
    ("arcee_fusion", 1, {"t": 0.5}, "no parameter 't'"),
    ("pcb", 2, {"ratio": 1.1}, r"'ratio': expected a number in \[0, 1\]"),
    ("widen", 2, {"ratio": -1}, "'ratio': expected a number >= 0"),
]


@pytest.mark.parametrize(("method", "models", "parameters", "message"), REFUSED)
def test_what_is_refused(method, models, parameters, message):
    with pytest.raises(RecipeError, match=message):
        wm.merge_tensors([ONE] * models, method, base=ONE, **parameters)


@pytest.mark.parametrize("method", ["della", "arcee_fusion", "pcb", "widen"])
def test_a_base_is_needed(method):
    with pytest.raises(RecipeError, match="needs a base"):
        wm.merge_tensors([ONE], method, **({"weight": 1} if method == "della" else {}))


@pytest.fixture
def models(tmp_path):
    for seed, name in enumerate(("base", "a", "b")):
        write_model(tmp_path / name, llama(seed))
    return tmp_path


def from_files(folder, method, listed, **parameters):
    models = [str(folder / m) for m in listed]
    document = {"merge_method": method, "models": models, "base_model": str(folder / "base"), "parameters": parameters}
    wm.merge(document, folder / "out", overwrite=True, sync=False, backend="torch")
    return {name: torch.from_numpy(array(raw).copy()) for name, raw in read_model(folder / "out").items()}


RECIPES = {
    "arcee_fusion": ("base", "a"),  # as mergekit's recipes have it, with both models listed
    "della": ("a", "b"),
    "della_linear": ("a", "b"),
    "pcb": ("b", "a"),
    "widen": ("a", "b"),
    "nuslerp": ("a", "b"),
    "model_stock": ("a", "b"),
}
OPTIONS = {
    "della": {"weight": 0.5, "density": 0.6},
    "della_linear": {"weight": 0.5, "density": 0.4},
    "nuslerp": {"weight": 1, "nuslerp_flatten": False},
    "model_stock": {"filter_wise": True},
}


@pytest.mark.parametrize("method", RECIPES)
def test_files_merge_as_tensors_do(method, models):
    listed = RECIPES[method]
    options = OPTIONS.get(method, {})
    merged_files = from_files(models, method, listed, **options)
    tensors = {m: {n: torch.from_numpy(v) for n, v in llama(seed).items()} for seed, m in enumerate(("base", "a", "b"))}
    for name, got in merged_files.items():
        inputs = [tensors[m][name] for m in listed if m != "base"]
        alone = wm.merge_tensors(inputs, method, base=tensors["base"][name], name=name, backend="torch", **options)
        assert_same_bits(got, alone)
    assert any(not torch.equal(merged_files[n], tensors["base"][n]) for n in merged_files)
