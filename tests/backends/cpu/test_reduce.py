"""Reduce on the CPU: one table of kinds, dimensions and accumulators, the reference's bits on every instruction set."""

import itertools
import math

import numpy as np
import pytest
import torch
from formula_helpers import KEY, adversarial, carry_out, formula, random_values
from kernel_helpers import ALL_DTYPES, CONFIGURATIONS, ISAS, buffer, cpu, family, opened, reference
from reduce_cases import CASES, INTERVALS, SHAPES, compare, measured, request_of
from warpmerge.errors import MergeError
from warpmerge.expr import expression as f
from warpmerge.models.views import FileRegion
from warpmerge.requests import Reduce


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_case(case, shape):
    base, tensors = family("bf16", 2, math.prod(shape))
    compare(cpu, request_of(case, shape), tensors, base, CONFIGURATIONS[::3])


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", ALL_DTYPES)
def test_values_that_hurt(case, dtype):
    shape = (5, 300)
    base, tensors = adversarial(dtype, 3, math.prod(shape))
    values = [*random_values(300, 3, outputs=3), f.delta(1)]
    for nonfinite, on_deltas in itertools.product(["propagate", "base"], [True, False]):
        request = request_of(case, shape, values, on_deltas=on_deltas)
        compare(cpu, request, tensors, base if on_deltas else None, CONFIGURATIONS[::4], nonfinite=nonfinite)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_ranks_and_vectors(case):
    rows, columns = 7, 700
    base, tensors = family("fp32", 2, rows * columns)
    values = [f.rank(0) * f.row(np.arange(7.0)) + f.rank(1), f.column(np.linspace(-1, 1, columns)) * f.delta(0)]
    values += [values[1] * f.draw(KEY), f.base()]
    compare(cpu, request_of(case, (rows, columns), values), tensors, base, CONFIGURATIONS[::4])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_exact_values(case):
    """By another route: float64 matrices and math.fsum. Additions round, everything else is exact."""
    shape = (31, 257)
    base, tensors = family("fp32", 2, math.prod(shape))
    found = measured(cpu(), request_of(case, shape, [f.base(), f.delta(0), f.delta(1), -f.delta(0)]), tensors, base)
    deltas = [(t - base).double().numpy() for t in tensors]
    values = [v.reshape(shape) for v in (base.double().numpy(), *deltas, -deltas[0])]
    if case.kind == "histogram":
        keys = [np.abs(v).astype(np.float32).view(np.uint32) for v in values]
        wanted = [int((k >= low).sum()) for k, (low, _) in zip(keys, INTERVALS, strict=True)]
        assert [h.above + int(np.sum(h.bins)) for h in found] == wanted
        return
    terms = [values[i] * values[k] for i, k in case.pairs] or values
    exact = {"sum": math.fsum, "max": max, "min": min, "count": np.count_nonzero}[case.kind]
    error = {"compute": 24 * 2.0**-24, "float64": 2.0**-45}[case.accumulator] if case.kind == "sum" else 0.0
    for term, got in zip(terms, found, strict=True):
        lines = {"tensor": [term.ravel()], "row": term, "column": term.T}[case.over]
        for line, number in zip(lines, np.atleast_1d(got), strict=True):
            assert abs(number - exact(line)) <= error * math.fsum(np.abs(line))


def test_deltas_are_the_default():
    base, tensors = family("bf16", 3, 5000)
    for kind, accumulator in (("sum", "compute"), ("sum", "float64"), ("max", "compute"), ("count", "compute")):
        request = Reduce(kind, accumulator=accumulator)
        written = Reduce(kind, tuple(map(f.delta, range(3))), accumulator=accumulator)
        assert measured(cpu(), request, tensors, base) == measured(reference(), written, tensors, base)


@pytest.mark.parametrize("dtype", ["bf16", "fp64"])
def test_histograms_of_deltas(dtype):
    """Keys of what is not finite are among the largest, as for KthLargest."""
    base, tensors = adversarial(dtype, 4, 9001)
    for nonfinite in ("propagate", "base"):
        compare(cpu, Reduce("histogram", intervals=INTERVALS), tensors, base, CONFIGURATIONS[::3], nonfinite=nonfinite)


def test_counters_of_a_bin_are_added_up_over_threads():
    tensor, key = torch.full((300_000,), 0.5), 0x3F000000
    for interval, number in [((key, key), 0), ((key - 10, key + 10), 10), ((0, key), key >> 14)]:
        request = Reduce("histogram", intervals=(interval,), on_deltas=False)
        [found] = measured(cpu("", 2, 512), request, [tensor])
        assert found.above == 0 and np.flatnonzero(found.bins).tolist() == [number]
        assert found.bins[number] == 300_000
        assert found.only is None if found.shift == 0 else found.only[number] == key


@pytest.mark.parametrize("over", ["row", "column"])
def test_files(tmp_path, over):
    """At an odd place in the file, with ranks, whatever the tile."""
    _, [tensor] = family("bf16", 1, 700 * 131)
    (tmp_path / "a").write_bytes(b"1" + tensor.view(torch.uint8).numpy().tobytes())
    file = opened(tmp_path / "a")
    region = FileRegion(buffer(tensor).dtype, tuple(tensor.shape), file, 1)
    of = formula([f.rank(0), f.delta(0)], 700)
    for request in (
        Reduce("sum", of, over, "float64", ((0, 1), (1, 1)), on_deltas=False),
        Reduce("max", of, over, on_deltas=False),
    ):
        wanted = measured(reference(), request, [tensor])
        for isa, tile in itertools.product(ISAS, (512, 4096, None)):
            found = measured(cpu(isa, 2, tile), request, [tensor], place=lambda t: region)
            assert np.array_equal(found, wanted), (isa, tile)


def test_a_mean_per_element():
    values = torch.tensor([1.0, 2.0, 4.0, 5.0])
    assert measured(cpu(), Reduce("sum", per_element=True, on_deltas=False), [values]) == (3.0,)


def test_a_sum_in_float64_is_exact_where_float32_is_not():
    values = torch.tensor([2.0**24, 1.0, 1.0] * 100)
    request = Reduce("sum", accumulator="float64", on_deltas=False)
    assert measured(cpu(), request, [values]) == (100 * (2.0**24 + 2),)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 3)])
def test_no_elements(case, shape):
    nothing = torch.empty(shape)
    request = request_of(case, shape, [f.delta(0), f.base(), f.delta(0), f.base()])
    compare(cpu, request, [nothing], nothing, CONFIGURATIONS[:1])


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"kind": "mean"}, "not one of sum"),
        ({"kind": "sum", "over": "row"}, "float64"),
        ({"kind": "sum", "pairs": ((0, 0),)}, "float64"),
        ({"kind": "max", "pairs": ((0, 0),)}, "pairs are for sums"),
        ({"kind": "histogram"}, "intervals"),
        ({"kind": "sum", "intervals": ((0, 1),)}, "intervals"),
        ({"kind": "max", "per_element": True}, "per_element is for sums"),
    ],
)
def test_fields_that_do_not_go_together(fields, problem):
    with pytest.raises(MergeError, match=problem):
        Reduce(**fields)


def test_rows_that_do_not_fit():
    with pytest.raises(MergeError, match="rows of 3 elements"):
        carry_out(cpu(), Reduce("max", formula([f.delta(0)], 3), "row"), [torch.ones(4)], torch.ones(4))
