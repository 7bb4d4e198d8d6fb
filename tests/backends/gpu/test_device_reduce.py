"""Reduce by the CUDA kernels on the emulated device: every case, in tiles and in place, with the reference's bits."""

import math

import numpy as np
import pytest
import torch
from device_cases import IN_PLACE, PLACES, Case, carry_out, place
from device_modes import FIXTURES
from formula_helpers import adversarial
from kernel_helpers import ALL_DTYPES, family, reference
from reduce_cases import CASES, VALUES, request_of, same
from warpmerge.backends.gpu.rows import value_pairs_of
from warpmerge.expr import expression as f

(emulation,) = FIXTURES

SHAPES = [(70, 1), (129, 7), (65, 257), (3, 4097), (2, 5000)]


def compare(cases, modes):
    wanted, _ = carry_out(reference(), cases)
    for mode in modes:
        with place(mode, cases) as backend:
            got, _ = carry_out(backend, cases, mode == IN_PLACE)
        for number, (one, other) in enumerate(zip(got, wanted, strict=True)):
            same(one.value, other.value, (number, cases[number].request, mode))
            assert one.nonfinite == other.nonfinite, (number, mode)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_case(case):
    cases = []
    for number, shape in enumerate(SHAPES):
        base, tensors = (adversarial if number % 2 else family)(ALL_DTYPES[number % 6], 2, math.prod(shape))
        cases.append(Case(request_of(case, shape), tensors, base))
        cases.append(Case(request_of(case, shape, on_deltas=False), tensors))
    compare(cases, [*PLACES, IN_PLACE])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_ranks_and_vectors(case):
    rows, columns = 7, 700
    base, tensors = family("fp32", 2, rows * columns)
    values = [f.rank(0) * f.row(np.arange(7.0)), f.column(np.linspace(-1, 1, columns)) * f.delta(0), *VALUES[:2]]
    compare([Case(request_of(case, (rows, columns), values), tensors, base)], ["resident"])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_no_elements(case):
    """Beside a tensor that has some."""
    values = [f.delta(0), f.base(), f.delta(0), f.base()]
    base, tensors = family("fp32", 1, 15)
    cases = [Case(request_of(case, (5, 3), values), tensors, base)]
    for shape in [(0,), (3, 0), (0, 3)]:
        cases.append(Case(request_of(case, shape, values), [torch.empty(shape)], torch.empty(shape)))
        compare([cases[0], cases[-1]], ["resident"])
    compare(cases, ["resident"])


def test_value_pairs_read_each_product_once():
    pairs = [(0, 0), (0, 1), (1, 2), (2, 2), (3, 3)]
    assert value_pairs_of(pairs).tolist() == [[0, 1, 0, 1, -1], [1, 2, -1, 2, 3], [3, 3, 4, -1, -1]]
