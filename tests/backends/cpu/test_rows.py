"""Sums and largest values of rows, of values that a formula has: the reference's bits, for any length of row."""

import os

import numpy as np
import pytest
import torch
from formula_helpers import KEY, adversarial, carry_out, compare_arrays, formula, random_values
from kernel_helpers import ALL_DTYPES, CONFIGURATIONS, ISAS, buffer, cpu, family, opened, reference
from warpmerge.errors import MergeError
from warpmerge.expr import expression as f
from warpmerge.models.views import FileRegion
from warpmerge.requests import Rows

# Around the lanes, the blocks and the tiles; one element, one row.
LENGTHS = [1, 2, 7, 64, 255, 256, 257, 511, 512, 896, 4095, 4096, 4097, 8192, 20_011]


def compare(request, tensors, base, configurations=CONFIGURATIONS, **options):
    return compare_arrays(request, tensors, base, configurations, **options)


@pytest.mark.parametrize("largest", [False, True])
@pytest.mark.parametrize("columns", LENGTHS)
def test_every_length(columns, largest):
    rows = 3 if columns > 4096 else min(300, max(2, 12_000 // columns))
    base, tensors = family("bf16", 2, rows * columns)
    values = [f.delta(0) * f.delta(1), f.delta(1), -abs(f.delta(0)) * f.draw(KEY)]
    found = compare(Rows(formula(values, columns), largest), tensors, base)
    assert found.shape == (3, rows) and found.any()


@pytest.mark.parametrize("nonfinite", ["propagate", "base"])
@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize("columns", [9, 300, 4500])
def test_values_that_hurt(columns, dtype, nonfinite):
    base, tensors = adversarial(dtype, 3, columns * 5)
    for on_deltas in (True, False):
        values = formula(random_values(columns, 3, outputs=3), columns)
        for largest in (False, True):
            request = Rows(values, largest, on_deltas)
            compare(request, tensors, base if on_deltas else None, CONFIGURATIONS[:2], nonfinite=nonfinite)


@pytest.mark.parametrize("columns", [5, 700, 5000])
def test_ranks_and_vectors(columns):
    base, tensors = family("fp32", 2, columns * 5)
    values = [f.rank(0) * f.row(np.arange(5.0)) + f.rank(1), f.column(np.linspace(0, 1, columns)) * f.delta(0)]
    compare(Rows(formula(values, columns)), tensors, base)


def test_a_sum_in_float64_is_exact_where_float32_is_not():
    values = torch.tensor([2.0**24, 1.0, 1.0] * 100)
    [[found]] = carry_out(cpu(), Rows(formula([f.delta(0)], 300), on_deltas=False), [values])[0]
    assert found == 100 * (2.0**24 + 2)


def test_files(tmp_path):
    _, [tensor] = family("bf16", 1, 700 * 31)
    (tmp_path / "a").write_bytes(b"1" + tensor.view(torch.uint8).numpy().tobytes())
    file = opened(tmp_path / "a")
    place = FileRegion(buffer(tensor).dtype, tuple(tensor.shape), file, 1)
    request = Rows(formula([f.rank(0) * f.delta(0), f.delta(0)], 700), on_deltas=False)
    wanted = carry_out(reference(), request, [tensor])[0]
    for isa in ISAS:
        assert np.array_equal(carry_out(cpu(isa, 2, 512), request, [tensor], place=lambda t: place)[0], wanted)
    os.close(file.fd)


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 3)])
def test_no_elements(shape):
    found = carry_out(cpu(), Rows(formula([f.delta(0), f.base()], shape[-1])), [torch.empty(shape)], torch.empty(shape))
    assert np.asarray(found[0]).shape == (2, 0)


def test_rows_need_a_length():
    with pytest.raises(MergeError, match="columns="):
        carry_out(cpu(), Rows(formula([f.delta(0)])), [torch.ones(4)], torch.ones(4))
