"""Methods that look at rows, columns and ranks: by hand, and one against another.

What holds for every method is in test_every_method.py.
"""

import numpy as np
import oracles_rows
import pytest
import torch
import warpmerge as wm
from kernel_helpers import assert_same_bits, family
from method_cases import SHAPE
from method_table import CASES, EMBEDDING
from odd_inputs import tensor
from oracles import assert_accurate
from warpmerge.methods.widen import ranked

# --- fusion ---------------------------------------------------------------------------------------------------------


def test_fusion_takes_elements_of_either_model():
    base, (model,) = family("bf16", 1, SHAPE)
    got = wm.merge_tensors([model], "arcee_fusion", base=base)
    assert ((got == base) | (got == model)).all()
    taken = (got != base).double().mean().item()
    assert 0.01 < taken < 0.2


def test_fusion_of_shifted_rows():
    """A row's softmax does not change when all its elements move by as much: all importances are 0, and all pass."""
    base = family("fp32", 1, (5, 8))[0]
    for model in (base + 0.25, base + tensor([0.5], [0], [-2], [1], [90])):
        torch.testing.assert_close(wm.merge_tensors([model], "arcee_fusion", base=base), model, rtol=1e-6, atol=1e-6)
    column = base[:, :1].contiguous()
    assert_same_bits(wm.merge_tensors([column + 1], "arcee_fusion", base=column), column + 1)


@pytest.mark.parametrize("scale", [40, 3000, 1e30])
def test_fusion_of_large_weights(scale):
    """Their exponentials are beyond float32, as with the biases of some attention layers."""
    base, (model,) = family("fp32", 1, (41, 53), sigma=0.01)
    base, model = base * scale, model * scale
    assert_accurate(
        wm.merge_tensors([model], "arcee_fusion", base=base), oracles_rows.arcee_fusion([model], base), most_unsure=0.01
    )


def test_fusion_of_rows_that_moved_far():
    """The sum of exponentials of one model is nothing beside that of the other."""
    base, (model,) = family("fp32", 1, (41, 53), sigma=0.05)
    far = tensor(-40, 40).repeat(27)[:41].view(41, 1)
    for old, new in ((base + far, model - far), (base - far / 4, model + far / 4)):
        assert_accurate(
            wm.merge_tensors([new], "arcee_fusion", base=old), oracles_rows.arcee_fusion([new], old), most_unsure=0.01
        )


def test_quartiles_are_elements():
    """All in one row, so importances order as magnitudes: of 1 to 9 the quartiles are 3, 5 and 7, the threshold 11."""
    base = torch.zeros(12)
    model = tensor(1, 2, 3, 4, 5, 6, 7, 8, 9, 11.5, 0, 0) * 1e-3
    got = wm.merge_tensors([model], "arcee_fusion", base=base)
    # Sorted: 0 0 1 2 3 4 5 6 7 8 9 11.5; at floor(q * 11) = 2, 5, 8 are 1, 4 and 7; 4 + 1.5 * (7 - 1) = 13.
    assert not got.any()
    model[9] = 13.5e-3
    assert torch.nonzero(wm.merge_tensors([model], "arcee_fusion", base=base)).flatten().tolist() == [9]


# --- parameter competition ------------------------------------------------------------------------------------------


def test_pcb_of_one_model_keeps_what_competes():
    base, (model,) = family("fp64", 1, 20_000)
    d = model - base
    got = wm.merge_tensors([model], "pcb", base=base, ratio=0.25) - base
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
    got = wm.merge_tensors([move, move, -move], "pcb", base=base, ratio=0.2)
    large = move.abs() > move.abs().quantile(0.85)
    assert (got[large].sign() == move[large].sign()).all()
    opposed = wm.merge_tensors([move, -move], "pcb", base=base, ratio=0.2)
    assert not opposed.any()  # all scores are 0


# --- weight disentanglement -----------------------------------------------------------------------------------------


def test_widen_takes_rows_of_embeddings_as_columns_of_others():
    base, tensors = family("fp64", 3, (23, 31))
    got = wm.merge_tensors(tensors, "widen", base=base, name=EMBEDDING)
    turned = [t.T.contiguous() for t in tensors]
    wanted = wm.merge_tensors(turned, "widen", base=base.T.contiguous(), name="model.w")
    torch.testing.assert_close(got, wanted.T, rtol=1e-13, atol=1e-16)


def test_widen_by_hand():
    """Two columns: the one that changed more is taken whole, of the other both models have a half."""
    base = tensor([1, 0], [0, 2])
    first, second = tensor([1, 0], [0, 8]), tensor([5, 0], [0, 2])
    got = wm.merge_tensors([first, second], "widen", base=base, ratio=1.0)
    # Norms: the first model changed the second column, the second model the first. No direction changed, so in both
    # models the second column is the higher of equal ones. e^0 / (e^0 + e^0.5) = 0.3775.
    low = 1 / (1 + np.exp(0.5))
    share = {"first": [(low + 0.5) / 2, 1.0], "second": [(1 + 0.5) / 2, (low + 1) / 2]}
    # Of the first model column 0 has rank 0 in norm (beside rank 1 of the other), of the second column 1.
    wanted = base + tensor([4 * share["second"][0], 0], [0, 6 * share["first"][1]])
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("equal", [1, 2, 40])
def test_ranks_of_changes(equal):
    """Of equal ones the first is lower, whether there are any or not."""
    change = np.random.default_rng(0).permuted(np.repeat(np.arange(200.0), equal))
    change = np.stack([change, np.roll(change, 7), np.random.default_rng(1).random(change.size)])
    wanted = [sorted(range(change.shape[1]), key=line.__getitem__) for line in change.tolist()]
    ranks = ranked(change)
    for line, order in zip(ranks, wanted, strict=True):
        assert line[order].tolist() == list(range(change.shape[1]))


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
    stock = wm.merge_tensors(tensors, "model_stock", base=base, filter_wise=True)
    for r in range(6):
        alone = wm.merge_tensors([t[r] for t in tensors], "model_stock", base=base[r])
        torch.testing.assert_close(stock[r], alone, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("options", [ROWS, COLUMNS])
def test_a_vector_is_one_row(options):
    base, tensors = family("fp32", 2, 50)
    flat = wm.merge_tensors(tensors, "nuslerp", base=base, weight=[1, 3])
    assert_same_bits(wm.merge_tensors(tensors, "nuslerp", base=base, **options), flat)
    stock = wm.merge_tensors(tensors, "model_stock", base=base, filter_wise=True)
    assert_same_bits(stock, wm.merge_tensors(tensors, "model_stock", base=base))


@pytest.mark.parametrize("options", [ROWS, COLUMNS])
def test_ends_and_opposite_rows(options):
    _, (a, b) = family("fp32", 2, (6, 50), sigma=0.02)
    for weight, end in (([1, 0], a), ([0, 1], b)):
        assert torch.equal(wm.merge_tensors([a, b], "nuslerp", **options | {"weight": weight}), end)
    middle = wm.merge_tensors([a, -3 * a], "nuslerp", **options)
    assert_same_bits(middle, a * 0.25 + -3 * a * 0.75)


@pytest.mark.parametrize("case", ["nuslerp-rows", "nuslerp-columns", "model_stock-rows"])
def test_squares_that_leave_float64(case):
    """Vectors are scaled by powers of two then, which changes no digit of an angle."""
    _, tensors = family("fp64", 2, (6, 50), sigma=0.02)
    base = torch.zeros_like(tensors[0])
    wanted = CASES[case].merged(tensors, base)
    for exponent in (-900, -600, 600, 1000):
        factor = 2.0**exponent
        assert_same_bits(CASES[case].merged([t * factor for t in tensors], base), wanted * factor)


def test_stock_of_identical_rows_is_the_model():
    base, (model,) = family("fp32", 1, (6, 50))
    got = wm.merge_tensors([model] * 3, "model_stock", base=base, filter_wise=True)
    torch.testing.assert_close(got, model, rtol=3e-7, atol=1e-9)
    model[2] = base[2]
    got = wm.merge_tensors([model] * 3, "model_stock", base=base, filter_wise=True)
    assert_same_bits(got[2], base[2])


@pytest.mark.parametrize("count", [1, 7, 4096, 4097, 100003])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_changes_that_are_all_the_same_do_not_stand_out(dtype, count):
    """Whatever their mean is rounded to."""
    for value in (0.7, 0.1, -1 / 3, 3e-5, 1e-30):
        change = torch.full((count,), value, dtype=dtype)
        got = wm.merge_tensors([change, change], "widen", base=torch.zeros_like(change))
        torch.testing.assert_close(got, change, rtol=1e-6, atol=0)  # a half of each


LONGEST = [
    ("pcb", 36, {"ratio": 1.0, "nonfinite": "propagate"}),
    ("della", 192, {"weight": 1.0, "density": 0.5, "elect": "unweighted", "normalize": True}),
    ("della", 192, {"weight": 1.0, "density": 0.5, "rescale": "inverse_probability", "elect": "unweighted"}),
    ("della_linear", 288, {"weight": 1.0, "density": 0.5}),
    ("della_linear", 288, {"weight": 1.0, "density": 0.5, "rescale": "inverse_probability"}),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("method", "models", "parameters"), LONGEST)
def test_as_many_models_as_make_a_formula(method, models, parameters, dtype):
    tensors = list(torch.randn(models, 3, 50, generator=torch.Generator().manual_seed(0), dtype=dtype))
    got = wm.merge_tensors(tensors, method, base=torch.zeros(3, 50, dtype=dtype), **parameters)
    assert got.isfinite().all() and got.any()
