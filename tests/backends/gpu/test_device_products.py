"""Products per row and per column by the CUDA kernels on the emulated device: of any shape, in tiles and in place."""

import numpy as np
import pytest
import torch
from device_cases import IN_PLACE, PLACES, Case, carry_out, compare, place
from device_modes import FIXTURES
from formula_helpers import KEY, adversarial, formula
from kernel_helpers import ALL_DTYPES, family
from warpmerge.backends.gpu import flight
from warpmerge.backends.gpu.rows import duos_of
from warpmerge.expr import expression as f
from warpmerge.requests import Products

(emulation,) = FIXTURES

SHAPES = [(70, 1), (129, 7), (130, 64), (65, 257), (3, 4097), (2, 5000), (14, 40_000), (1, 600)]
PAIRS = ((0, 0), (0, 1), (2, 1), (1, 0), (2, 2), (0, 1))


def values(columns):
    return formula([f.delta(0), f.delta(1) * f.delta(0) + f.draw(KEY), -abs(f.delta(1))], columns)


@pytest.mark.parametrize("per_column", [False, True])
@pytest.mark.parametrize("mode", [*PLACES, "tiled", IN_PLACE])
def test_products(mode, per_column):
    """In tiles, some rows are longer than a load where rows may be cut."""
    cases = []
    for number, (rows, columns) in enumerate(SHAPES):
        if mode.startswith("tiled") and columns == 40_000 and per_column:
            continue
        base, tensors = (adversarial if number % 2 else family)(ALL_DTYPES[number % 6], 2, columns * rows)
        cases.append(Case(Products(values(columns), PAIRS, per_column), tensors, base))
        cases.append(Case(Products(values(columns), ((1, 1),), per_column, on_deltas=False), tensors))
    compare(cases, [mode])


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 3)])
@pytest.mark.parametrize("per_column", [False, True])
def test_products_of_nothing(shape, per_column):
    request = Products(formula([f.delta(0), f.base()], shape[-1]), ((0, 1), (1, 1)), per_column)
    cases = [Case(request, [torch.empty(shape)], torch.empty(shape))]
    compare(cases, [*PLACES, IN_PLACE])
    if per_column:  # beside one that has some
        base, tensors = family("fp32", 1, 600)
        cases.append(Case(Products(formula([f.delta(0), f.base()], 3), ((0, 1), (1, 1)), True), tensors, base))
        compare(cases, ["resident"])


@pytest.mark.parametrize("per_column", [False, True])
def test_products_that_overflow(per_column):
    """Infinite sums, and infinities of both signs, which add up to the canonical NaN."""
    large = torch.tensor([[1e200, 1.0, -1e200], [1e200, -1e200, 1e200]] * 4, dtype=torch.float64).reshape(-1)
    request = Products(formula([f.delta(0), f.delta(1)], 3), ((0, 0), (0, 1)), per_column)
    cases = [Case(request, [large, torch.tensor([1e200, 1e200, -3e200, -1e200] * 6, dtype=torch.float64)])]
    compare(cases, ["resident", IN_PLACE])
    with place("resident", cases) as backend:
        found = carry_out(backend, cases)[0][0].value
    assert np.isposinf(found[0]).any() and np.isnan(found[1]).any()


@pytest.mark.parametrize("columns", [3, 130, 4096])
def test_columns_in_tiles(columns, monkeypatch):
    """Blocks of rows that go on from piece to piece and from load to load, on streams that take turns."""
    monkeypatch.setattr(flight, "TEMPORARIES", 1 << 16)
    rows = {3: 30_000, 130: 800, 4096: 61}[columns]
    base, tensors = family("bf16", 2, columns * rows)
    cases = [Case(Products(values(columns), PAIRS, True), tensors, base)]
    if columns < 4096:  # ranks need whole rows, of which several do not fit into a tile
        ranked = formula([f.rank(0) * f.row(np.arange(rows) * 0.25), f.delta(1)], columns)
        cases.append(Case(Products(ranked, ((0, 1),), True), tensors, base))
    if columns == 130:
        cases.append(Case(Products(ranked, ((0, 1),)), tensors, base))
    compare(cases, ["tiled", "tiled, late"])


@pytest.mark.parametrize("per_column", [False, True])
def test_tensors_share_launches(per_column):
    cases = []
    for number, (rows, columns) in enumerate(SHAPES):
        base, tensors = family("bf16", 2, rows * columns, seed=number)
        cases.append(Case(Products(values(columns), ((0, 1), (0, 0)), per_column), tensors, base))
    compare(cases, ["resident"])
    with place("resident", cases) as backend:
        before = backend.runtime.device.launches
        carry_out(backend, cases)
        assert backend.runtime.device.launches == before + 3  # the formula, the products, the totals


def test_pairs_are_put_into_duos():
    def duos(*pairs):
        found = duos_of(pairs).tolist()
        places = [p for duo in found for p in duo[2:] if p >= 0]
        assert sorted(places) == list(range(len(pairs)))
        for a, b, *of in found:
            assert all(p < 0 or pairs[p] == pair for p, pair in zip(of, ((a, a), (a, b), (b, b)), strict=True))
        return found

    assert duos((0, 1), (0, 0), (1, 1)) == [[0, 1, 1, 0, 2]]
    assert duos((0, 0), (1, 1), (2, 2)) == [[0, 1, 0, -1, 1], [2, 2, 2, -1, -1]]
    assert len(duos((0, 3), (1, 3), (2, 3), (3, 3), (0, 0))) == 3
    everything = [(a, b) for a in range(6) for b in range(a, 6)]
    assert len(duos(*everything)) == 15
