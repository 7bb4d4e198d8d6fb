"""Sums of products per row and per column: the reference's bits, and what exact sums say, for any shape."""

import itertools
import math
import os

import numpy as np
import pytest
import torch
from formula_helpers import KEY, adversarial, carry_out, compare_arrays, formula, random_values
from kernel_helpers import ALL_DTYPES, CONFIGURATIONS, ISAS, buffer, cpu, family, opened, reference
from warpmerge.errors import MergeError
from warpmerge.expr import expression as f
from warpmerge.models.views import FileRegion
from warpmerge.requests import Products

VALUES = [f.base(), f.delta(0), f.delta(1) - f.delta(0), f.delta(0) * f.draw(KEY)]
PAIRS = tuple(itertools.combinations_with_replacement(range(len(VALUES)), 2))
# One column, one row; around a panel, a stage, the lanes, the blocks of both orders and tiles; rows longer than a tile.
SHAPES = [
    (1, 1),
    (1, 700),
    (700, 1),
    (2, 7),
    (65, 3),
    (500, 100),
    (129, 128),
    (64, 129),
    (3, 256),
    (70, 257),
    (130, 300),
]
SHAPES += [(129, 512), (33, 896), (6, 4096), (5, 4097), (3, 8193), (67, 8200), (2, 150_001)]


def compare(request, tensors, base, configurations=CONFIGURATIONS, **options):
    return compare_arrays(request, tensors, base, configurations, **options)


@pytest.mark.parametrize("per_column", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape(shape, per_column):
    rows, columns = shape
    base, tensors = family("bf16", 2, rows * columns)
    configurations = CONFIGURATIONS if rows * columns < 100_000 else CONFIGURATIONS[::3]
    found = compare(Products(formula(VALUES, columns), PAIRS, per_column), tensors, base, configurations)
    assert found.shape == (len(PAIRS), columns if per_column else rows)


@pytest.mark.parametrize("per_column", [False, True])
@pytest.mark.parametrize("dtype", ["bf16", "fp32", "fp64"])
def test_exact_sums(dtype, per_column):
    """Of float32 every product is exact, so only the additions round: far less than one part in 2^45 of the terms."""
    rows, columns = 150, 70
    base, tensors = family(dtype, 2, rows * columns)
    request = Products(
        formula([f.base(), f.delta(0), f.delta(1)], columns), ((0, 0), (0, 1), (1, 2), (2, 1)), per_column
    )
    found = carry_out(cpu(), request, tensors, base)[0]
    kind = torch.float64 if dtype == "fp64" else torch.float32
    values = [base.to(kind), *(t.to(kind) - base.to(kind) for t in tensors)]
    matrices = [v.double().view(rows, columns).numpy() for v in values]
    for (i, k), sums in zip(request.pairs, found, strict=True):
        terms = matrices[i] * matrices[k]
        for line, got in zip(terms.T if per_column else terms, sums, strict=True):
            assert abs(got - math.fsum(line)) <= 2**-45 * math.fsum(np.abs(line))
    assert np.array_equal(found[2], found[3])


@pytest.mark.parametrize("nonfinite", ["propagate", "base"])
@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize("columns", [9, 300, 4500])
def test_values_that_hurt(columns, dtype, nonfinite):
    base, tensors = adversarial(dtype, 3, columns * 5)
    pairs = ((0, 0), (0, 1), (2, 1), (2, 3), (3, 3))
    for on_deltas, per_column in itertools.product([True, False], repeat=2):
        values = [*random_values(columns, 3, outputs=3), f.delta(1)]
        request = Products(formula(values, columns), pairs, per_column, on_deltas)
        compare(request, tensors, base if on_deltas else None, CONFIGURATIONS[::2], nonfinite=nonfinite)


def test_products_that_overflow_have_a_nan_with_the_same_bits():
    huge = torch.tensor([[1e200, 1e200], [1e200, -1e200]], dtype=torch.float64)
    request = Products(formula([f.delta(0), f.delta(1)], 2), ((0, 0), (0, 1)), True, on_deltas=False)
    found = compare(request, [huge, huge[:, :1] * torch.tensor([1e-100, 1], dtype=torch.float64)], None)
    assert np.isinf(found[0]).all() and np.isnan(found[1][1])
    assert found[1].view(np.int64)[1] == np.array(np.nan).view(np.int64)


@pytest.mark.parametrize("per_column", [False, True])
@pytest.mark.parametrize("columns", [5, 700, 5000])
def test_ranks_and_vectors(columns, per_column):
    base, tensors = family("fp32", 2, columns * 7)
    values = [f.rank(0) * f.row(np.arange(7.0)) + f.rank(1), f.column(np.linspace(0, 1, columns)) * f.delta(0)]
    compare(Products(formula(values, columns), ((0, 1), (1, 1)), per_column), tensors, base)


@pytest.mark.parametrize("per_column", [False, True])
def test_files(tmp_path, per_column):
    _, [tensor] = family("bf16", 1, 700 * 131)
    (tmp_path / "a").write_bytes(b"1" + tensor.view(torch.uint8).numpy().tobytes())
    file = opened(tmp_path / "a")
    place = FileRegion(buffer(tensor).dtype, tuple(tensor.shape), file, 1)
    request = Products(formula([f.rank(0), f.delta(0)], 700), ((0, 1), (1, 1)), per_column, on_deltas=False)
    wanted = carry_out(reference(), request, [tensor])[0]
    for isa, tile in itertools.product(ISAS, (512, 4096, None)):
        assert np.array_equal(carry_out(cpu(isa, 2, tile), request, [tensor], place=lambda t: place)[0], wanted)
    os.close(file.fd)


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 3)])
def test_no_elements(shape):
    nothing = torch.empty(shape)
    for per_column, backend in itertools.product([False, True], [cpu(), reference()]):
        request = Products(formula([f.delta(0), f.base()], shape[-1]), ((0, 0), (0, 1)), per_column)
        found = np.asarray(carry_out(backend, request, [nothing], nothing)[0])
        assert found.shape == (2, shape[-1] if per_column else 0) and not found.any()


def test_columns_need_a_length():
    with pytest.raises(MergeError, match="columns="):
        carry_out(cpu(), Products(formula([f.delta(0)]), ((0, 0),), True), [torch.ones(4)], torch.ones(4))
