"""Ranks within rows: a stable order by magnitude, for any distribution of values."""

import numpy as np
import pytest
import torch
from formula_helpers import adversarial, assert_same_tensors, carry_out, formula
from kernel_helpers import ALL_DTYPES, CONFIGURATIONS, ISAS, cpu, family, reference
from test_equality_adversarial import DELTAS
from warpmerge.expr import expression as f
from warpmerge.requests import Map

SMALL_TILES = [(isa, 2, 512) for isa in ISAS]


def compare(tensors, base, columns, configurations=SMALL_TILES, **options):
    values = formula([f.rank(k) for k in range(len(tensors))], columns)
    request = Map(values, on_deltas=base is not None)
    options |= {"outputs": len(tensors), "out_dtype": torch.float32}
    wanted = carry_out(reference(), request, tensors, base, **options)[2]
    for configuration in configurations:
        got = carry_out(cpu(*configuration), request, tensors, base, **options)[2]
        assert_same_tensors(got, wanted, configuration)
    return wanted


@pytest.mark.parametrize("columns", [1, 2, 3, 31, 33, 255, 256, 512, 896, 1000, 4864, 20_000])
@pytest.mark.parametrize("dtype", ["bf16", "fp32", "fp64"])
def test_every_length(dtype, columns):
    rows = 2 if columns > 4000 else min(200, max(3, 5000 // columns))
    base, tensors = family(dtype, 2, rows * columns)
    compare(tensors, base, columns, CONFIGURATIONS if columns in (33, 896) else SMALL_TILES)
    for row in compare(tensors, None, columns)[0].view(rows, columns):
        assert torch.equal(row.sort().values, torch.arange(columns, dtype=torch.float32))


@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize("nonfinite", ["propagate", "base"])
def test_values_that_are_not_finite(dtype, nonfinite):
    base, tensors = adversarial(dtype, 2, 3000)
    compare(tensors, base, 1000, nonfinite=nonfinite)
    compare(tensors, None, 3000, nonfinite=nonfinite)


@pytest.mark.parametrize("kind", DELTAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_distributions(kind, dtype):
    compare([kind(4000).to(dtype)], None, 1000)
    compare([kind(4000).to(dtype)], None, 4000)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_keys_that_share_all_but_their_lowest_bits(dtype):
    """Every pass of the sort finds nearly all keys in one bin."""
    integer = torch.int32 if dtype == torch.float32 else torch.int64
    generator = torch.Generator().manual_seed(0)
    keys = torch.ones(3000, dtype=dtype).view(integer) + torch.randint(0, 50, (3000,), generator=generator)
    scales = [0, *(2.0**e for e in range(-120, 100, 20)), 1.0]
    values = (
        keys.to(integer).view(dtype)
        * torch.tensor(scales, dtype=dtype)[
            torch.randint(len(scales), (3000,), generator=generator) * (torch.rand(3000, generator=generator) < 0.3)
        ]
    )
    compare([values, keys.to(integer).view(dtype)], None, 3000)


def test_of_a_delta_and_in_an_expression():
    base, tensors = family("bf16", 1, 700 * 9)
    order = np.argsort(np.abs((tensors[0].float() - base.float()).numpy().reshape(9, 700)), axis=1, kind="stable")
    smallest = formula([f.where(f.rank(0) < 10, 1.0, 0.0)], 700)
    wanted = np.zeros((9, 700))
    np.put_along_axis(wanted, order[:, :10], 1.0, axis=1)
    zero = torch.zeros(700 * 9)
    d = tensors[0].float() - base.float()
    found = carry_out(cpu(ISAS[0], 2, 512), Map(smallest, True), [d], zero)[2][0]
    assert np.array_equal(found.numpy().reshape(9, 700), wanted)
