"""Formulas on the CPU: the reference's bits, for every instruction, any program, any tiling."""

import dataclasses

import numpy as np
import pytest
import torch
from formula_helpers import (
    KEY,
    adversarial,
    assert_same_tensors,
    carry_out,
    everything,
    formula,
    is_wide,
    random_values,
    threshold,
)
from kernel_helpers import (
    ALL_DTYPES,
    CONFIGURATIONS,
    ISAS,
    assert_same_bits,
    buffer,
    cpu,
    family,
    opened,
    reference,
    unaligned,
)
from warpmerge.errors import MergeError
from warpmerge.expr import expression as f
from warpmerge.models.views import FileRegion
from warpmerge.requests import KEEP_ALL, KthLargest, Map, RandomMask, Reduce, TopKMask

COUNT = 1283  # two stages and a rest, of whole strips too
SMALL_TILES = [(isa, 2, 512) for isa in ISAS]


def compare(request, tensors, base=None, configurations=SMALL_TILES, outputs=1, **options):
    wanted = carry_out(reference(), request, tensors, base, outputs=outputs, **options)
    for configuration in configurations:
        value, nonfinite, results = carry_out(cpu(*configuration), request, tensors, base, outputs=outputs, **options)
        assert nonfinite == wanted[1], configuration
        if not isinstance(request, Map):
            assert value == wanted[0], configuration
        assert_same_tensors(results, wanted[2], configuration)


# --- apply ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_deltas", [True, False])
@pytest.mark.parametrize("dtype", ALL_DTYPES)
def test_every_instruction(dtype, on_deltas):
    base, tensors = adversarial(dtype, 2, COUNT)
    base = base if on_deltas else None
    fp64 = is_wide(dtype)
    keys = [threshold(tensors, fp64), 0x7FC00000, 0x7FF8 << 48, 1]
    values = everything(2, columns=COUNT, rows=1, keys=keys)
    out = torch.float64 if fp64 else torch.float32
    compare(Map(formula(values, COUNT), on_deltas), tensors, base, outputs=len(values), out_dtype=out)


@pytest.mark.parametrize("nonfinite", ["error", "propagate", "base"])
@pytest.mark.parametrize("models", [1, 2, 3, 5, 9])
def test_random_programs(models, nonfinite):
    for seed, dtype in enumerate(ALL_DTYPES):
        base, tensors = (adversarial if seed % 2 else family)(dtype, models, COUNT, seed=seed)
        values = random_values(seed + 10 * models, models, outputs=2)
        for on_deltas in (True, False):
            compare(
                Map(formula(values), on_deltas),
                tensors,
                base if on_deltas else None,
                SMALL_TILES[:1] + CONFIGURATIONS[-1:],
                outputs=2,
                nonfinite=nonfinite,
            )


@pytest.mark.parametrize("seed", range(6))
def test_configurations(seed):
    """All instruction sets, threads and tiles; from files too, where a tile is read into a worker's memory."""
    base, tensors = family(ALL_DTYPES[seed], 3, 20_011, seed=seed)
    rows = [f.row(np.linspace(1, 2, 1)), f.column(np.linspace(-1, 1, 20_011))]
    values = random_values(seed, 3, rows, outputs=2)
    values.append(f.masked(values[0], TopKMask(1 << 20, 10_000)))
    compare(Map(formula(values, 20_011), True), tensors, base, CONFIGURATIONS, outputs=3)


def test_files(tmp_path):
    base, tensors = family("bf16", 3, 20_011)
    places = {}
    for i, tensor in enumerate([base, *tensors]):
        path = tmp_path / str(i)
        path.write_bytes(b"123" + tensor.view(torch.uint8).numpy().tobytes())
        places[id(tensor)] = FileRegion(buffer(tensor).dtype, tuple(tensor.shape), opened(path), 3)
    values = random_values(3, 3, [f.column(np.linspace(0, 1, 17)), f.rank(1)])
    request = Map(formula(values, 17), True)
    short = [t[: 17 * 1177].clone() for t in (base, *tensors)]
    wanted = carry_out(reference(), request, short[1:], short[0])[2]
    for configuration in CONFIGURATIONS:

        def place(tensor):
            original = [base, *tensors][[id(t) for t in short].index(id(tensor))]
            full = places[id(original)]
            return dataclasses.replace(full, shape=tuple(tensor.shape))

        got = carry_out(cpu(*configuration), request, short[1:], short[0], place=place)[2]
        assert_same_tensors(got, wanted, configuration)


@pytest.mark.parametrize("columns", [1, 7, 255, 256, 257, 5000])
def test_vectors_of_rows_and_columns(columns):
    rows = max(1, 15_000 // columns)
    count = rows * columns
    base, tensors = family("bf16", 2, count)
    generator = np.random.default_rng(columns)
    by_row, by_column = generator.standard_normal(rows), generator.standard_normal(columns)
    values = [f.delta(0) * f.row(by_row) + f.column(by_column), f.row(by_column[:1].repeat(rows)), f.column(by_column)]
    compare(Map(formula(values, columns), True), tensors, base, CONFIGURATIONS, outputs=3, out_dtype=torch.float32)


@pytest.mark.parametrize("tie_end", [0, 1, 511, 512, 513, 575, 576, 1000, COUNT])
def test_ties_end_anywhere(tie_end):
    base, tensors = family("bf16", 2, COUNT)
    limit = threshold([tensors[0].float() - base.float()], False)
    values = [f.masked(f.delta(0), TopKMask(limit, tie_end)), f.masked(f.delta(0) * 1.0, TopKMask(limit, tie_end))]
    compare(Map(formula(values), True), tensors, base, outputs=2)


@pytest.mark.parametrize("on_deltas", [True, False])
def test_choices_that_no_element_of_a_stage_takes(on_deltas):
    """What only an exception needs is skipped; what is needed elsewhere too is not, nor where a single one takes it."""
    base, tensors = family("fp32", 2, 4 * COUNT)
    a, b = f.delta(0), f.delta(1)
    tensors[0][:1024], tensors[0][1024:2048] = 5.0, -5.0
    tensors[0][1600] = 7.0
    tensors[0][2048:3000] = float("nan")
    base[:3000] = 0.0
    rare, shared = a * b / (b + 3) - 1.0 / (a + 0.5), f.exp(b) / (a * a + 1)
    nested = f.where(b < 0.1, f.tanh(a), f.where(a > 0, rare, f.log(abs(b) + 2) / 3))
    values = [
        f.where(a > 0, b, rare),
        f.where(a > 0, b, shared) + shared,
        f.where(abs(a) < 9, f.where(a < 0, nested, rare + 1), nested * 2),
        f.where(a > 0, shared, rare * shared) * f.where(a < 0, rare, f.masked(nested, TopKMask(1 << 29, 99)) / 7),
        f.where(rare, rare * 2, rare / 3 + nested),
        f.where(a, b, f.where(b, f.sqrt(abs(a)) / 2 + f.exp(a), f.exp(b) + 1)),
    ]
    compare(Map(formula(values), on_deltas), tensors, base if on_deltas else None, outputs=len(values))
    for value in values:
        compare(Map(formula([value]), on_deltas), tensors, base if on_deltas else None)


@pytest.mark.parametrize("agree", [0, 1, 2, 3])
def test_inputs_that_agree_stay(agree):
    _, tensors = adversarial("fp16", 3, COUNT)
    tensors[1][::2] = tensors[0][::2]
    tensors[2][::3] = tensors[0][::3]
    tensors[0][:2] = torch.tensor([0.0, -0.0])
    tensors[1][:2] = torch.tensor([-0.0, -0.0])
    values = [(f.delta(0) + f.delta(1) + f.delta(2)) / 3, f.wrap(1.5)]
    compare(Map(formula(values), False, agree), tensors, outputs=2)


def test_many_outputs_constants_and_registers():
    """More than a first-level cache holds."""
    base, tensors = family("bf16", 9, COUNT)
    terms = [f.delta(k % 9) * (0.1 + k) for k in range(200)]
    values = [f.add_up(terms[: 20 * (m + 1)]) * (m + 0.3) for m in range(9)]
    compare(Map(formula(values), True), tensors, base, outputs=9, out_dtype=torch.float32)


@pytest.mark.parametrize("shape", [(0,), (), (1,), (3, 0), (2, 3, 5)])
def test_shapes(shape):
    base, tensors = family("bf16", 2, shape)
    columns = shape[-1] if shape else 1
    rows = base.numel() // columns if columns else 0
    values = [f.delta(0) + f.row(np.ones(rows)) * f.column(np.ones(columns)) * f.draw(KEY) + f.rank(1)]
    for place in (lambda t: t, unaligned):
        moved = [place(t) for t in (base, *tensors)]
        if base.numel():
            compare(Map(formula(values, columns), True), moved[1:], moved[0])
        else:
            carry_out(cpu(), Map(formula(values, columns), True), moved[1:], moved[0])


def test_rows_that_do_not_fit_are_refused():
    base, tensors = family("bf16", 2, 12)
    cases = {
        "needs their length": formula([f.row(np.ones(3))]),
        "rows of 5 elements": formula([f.rank(0)], 5),
        "each row, 3": formula([f.row(np.ones(4))], 4),
        "each column, 4": formula([f.column(np.ones(3))], 4),
    }
    for message, refused in cases.items():
        with pytest.raises(MergeError, match=message):
            carry_out(cpu(), Map(refused, True), tensors, base)


# --- measured -------------------------------------------------------------------------------------------------------


def keeps(values, fp64):
    rules = [KEEP_ALL, RandomMask(KEY, 20000), TopKMask(0x3FF << 52 if fp64 else 127 << 23, 3000)]
    return tuple(rules[m % 3] for m in range(values))


@pytest.mark.parametrize("nonfinite", ["propagate", "base"])
@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize(("models", "outputs"), [(1, 3), (3, 1), (2, 2)])
def test_reductions_of_values(dtype, models, outputs, nonfinite):
    base, tensors = adversarial(dtype, models, 9001)
    values = random_values(models, models, outputs=outputs)
    rules = keeps(outputs, is_wide(dtype))
    values += [f.masked(v, rule) for v, rule in zip(values, rules, strict=True)]
    for kind in ("sum", "max", "count"):
        compare(Reduce(kind, of=formula(values)), tensors, base, nonfinite=nonfinite)


@pytest.mark.parametrize("dtype", ALL_DTYPES)
def test_every_nan_has_one_magnitude(dtype):
    """A rule must not tell one NaN of the base from another; what it keeps is seen where the value is measured."""
    base, tensors = adversarial(dtype, 1, 9001)
    between, canonical = (0x7FF1 << 48, 0x7FF8 << 48) if is_wide(dtype) else (0x7F81 << 16, 0x7FC0 << 16)
    rules = [TopKMask(between), TopKMask(canonical, 0), TopKMask(canonical, 5000)]
    values = [f.equal(f.masked(f.base(), rule), 0.0) for rule in rules]
    compare(Reduce("sum", of=formula(values)), tensors, base)


@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize("count", [100, 9001, 140_000])  # from all keys, and by sweeps
def test_selection_of_values(dtype, count):
    base, tensors = family(dtype, 2, count)
    values = [abs(f.delta(0)) * f.delta(1), f.delta(1) * f.draw(KEY), 1.0 / f.delta(0)]
    configurations = SMALL_TILES[:1] if count > 100_000 else CONFIGURATIONS
    for ties in (False, True):
        request = KthLargest((count // 2, max(1, count // 50), 0), ties, of=formula(values))
        compare(request, tensors, base, configurations)


@pytest.mark.parametrize("columns", [7, 700])
def test_ranks_are_measured(columns):
    count = columns * 200 if columns < 100 else 140_000
    base, tensors = family("bf16", 2, count)
    values = formula([f.rank(0) * f.delta(1), f.rank(1)], columns)
    configurations = [(ISAS[0], 2, 512), (ISAS[0], 2, None)]
    compare(KthLargest((count // 3, count // 10), of=values), tensors, base, configurations)
    compare(Reduce("sum", of=values), tensors, base, configurations)


def test_a_formula_goes_from_tensor_to_tensor():
    """One object, several tensors at once and of both widths."""
    shared = formula([f.exp(f.delta(0)) - 1.0])
    for dtype in ("bf16", "fp64", "bf16"):
        base, tensors = family(dtype, 1, COUNT)
        wanted = carry_out(reference(), Map(shared, True), tensors, base)[2][0]
        assert_same_bits(carry_out(cpu(), Map(shared, True), tensors, base)[2][0], wanted)
