"""Rows and ranks by the CUDA kernels on the emulated device: of any length, in tiles and in place."""

import contextlib

import numpy as np
import pytest
import torch
from device_cases import IN_PLACE, PLACES, Case, carry_out, compare, place
from device_modes import FIXTURES
from formula_helpers import KEY, adversarial, formula, is_wide
from kernel_helpers import ALL_DTYPES, family, native_file, reference
from warpmerge.backends.gpu import residency
from warpmerge.errors import DeviceError
from warpmerge.expr import expression as f
from warpmerge.requests import KthLargest, Map, RandomMask, Reduce
from warpmerge.tasks import FileSink

(emulation,) = FIXTURES

# Many to a block of threads, one block, several, and more than a load.
LENGTHS = [1, 64, 4097, 40_000]


@pytest.mark.parametrize("mode", [*PLACES, "tiled", IN_PLACE])
def test_rows(mode):
    """In tiles, rows are longer than a tile."""
    cases = []
    for number, columns in enumerate(LENGTHS):
        rows = min(500, max(2, 5000 // columns))
        base, tensors = (adversarial if number % 2 else family)(ALL_DTYPES[number % 6], 2, columns * rows)
        values = formula([f.delta(0) * f.delta(1), f.delta(1), -abs(f.delta(0)) * f.draw(KEY)], columns)
        for kind in ("sum", "max"):
            cases.append(Case(Reduce(kind, values, "row", "float64"), tensors, base))
        cases.append(Case(Reduce("sum", values, "row", "float64", on_deltas=False), tensors))
    compare(cases, [mode])


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 3)])
def test_rows_of_nothing(shape):
    request = Reduce("sum", formula([f.delta(0), f.base()], shape[-1]), "row", "float64")
    for mode in (*PLACES, IN_PLACE):
        cases = [Case(request, [torch.empty(shape)], torch.empty(shape))]
        with place(mode, cases) as backend:
            assert carry_out(backend, cases, mode == IN_PLACE)[0][0].value.shape == (2, 0)


def ranked(columns, rows, dtype, kind):
    base, tensors = family(dtype, 2, rows * columns, seed=columns)
    if kind == "ties":  # few values, whole rows of one
        tensors = [torch.sign(t) * 0.5 * (torch.arange(t.numel()) // columns % 3 > 0) for t in tensors]
        tensors, base = [t.to(base.dtype) for t in tensors], torch.zeros_like(base)
    if kind == "adversarial":
        base, tensors = adversarial(dtype, 2, rows * columns, seed=columns)
    return base, tensors


@pytest.mark.parametrize("columns", [1, 7, 128, 129, 257, 5000, 40_000])
@pytest.mark.parametrize("kind", ["family", "ties", "adversarial"])
def test_ranks(kind, columns):
    cases = []
    rows = max(2, 1500 // columns) if columns < 40_000 else 1
    for dtype in ("fp64", "fp32") if kind == "family" else ("bf16",):
        base, tensors = ranked(columns, rows, dtype, kind)
        values = [f.rank(0), f.rank(1) * f.delta(0) + f.draw(KEY)]
        out = torch.float64 if is_wide(dtype) else torch.float32
        cases.append(Case(Map(formula(values, columns), False), tensors, outputs=2, out_dtype=out))
        cases.append(Case(Map(formula(values, columns), True), tensors, base, outputs=2, nonfinite="base"))
    compare(cases, ["resident", IN_PLACE])


def test_ranks_of_several_lengths_share_launches():
    cases = []
    for columns in (7, 100, 300, 8192, 8193):
        base, tensors = ranked(columns, 3, "bf16", "family")
        cases.append(Case(Map(formula([f.rank(1) * 0.5 + f.rank(0)], columns), True), tensors, base))
    compare(cases, ["resident"])
    with place("resident", cases) as backend:
        before = backend.runtime.device.launches
        carry_out(backend, cases)
        # For each input the rows that fit into shared memory and those that do not, and the formula.
        assert backend.runtime.device.launches == before + 2 * 2 + 1


@pytest.mark.parametrize("columns", [5, 700, 5000])
def test_ranks_are_measured(columns):
    rows = max(3, 9000 // columns)  # several blocks of the sum over the tensor
    base, tensors = family("bf16", 2, columns * rows)
    values = formula([f.rank(0) * f.row(np.arange(rows) * 0.25) + f.rank(1), f.rank(1)], columns)
    cases = [
        Case(request, tensors, base)
        for request in [
            Reduce("sum", values, "row", "float64"),
            KthLargest((columns * rows // 3, 10), of=values),
            Reduce("sum", values),
        ]
    ]
    compare(cases, ["resident", IN_PLACE])


@pytest.mark.parametrize("columns", [3, 260, 4096])
def test_ranks_in_tiles(columns, monkeypatch):
    """Tiles of whole rows."""
    monkeypatch.setattr(residency, "VALUE_SCRATCH", 1 << 16)
    base, tensors = family("bf16", 2, columns * (80_000 // columns))
    values = formula([f.rank(0) * f.delta(1) + f.masked(f.delta(0), RandomMask(KEY, 30_000))], columns)
    cases = [
        Case(Map(values, True), tensors, base),
        Case(Reduce("sum", values, "row", "float64"), tensors, base),
        Case(Reduce("sum", values), tensors, base),
    ]
    # Sums over the tensor need whole blocks of the reduction order too: for the others a tile would have to be larger.
    compare(cases[: {3: 1, 260: 2, 4096: 3}[columns]], ["tiled, late"])


@pytest.mark.parametrize("columns", [5, 300])
def test_results_in_files(columns, tmp_path):
    """Parts that begin at rows: the file's bytes and the digest of them."""
    base, tensors = family("bf16", 2, columns * (60_000 // columns))
    case = Case(Map(formula([f.rank(0) * f.delta(1) + f.draw(KEY)], columns), True), tensors, base)
    found = []
    for number, mode in enumerate([None, "tiled", "tiled, late"]):
        with open(tmp_path / str(number), "w+b") as file, contextlib.ExitStack() as stack:
            backend = stack.enter_context(place(mode, [case])) if mode else reference()
            made, _ = case.prepared()
            made.sinks = [FileSink(native_file(file), 24)]
            [outcome] = backend.launch([(made, case.request)]).wait()
            found.append((outcome.value, (tmp_path / str(number)).read_bytes()))
    assert found[0] == found[1] == found[2] and len(found[0][1]) == 24 + 2 * base.numel()


def test_rows_that_do_not_fit_into_device_memory():
    base, tensors = family("bf16", 2, 40_000 * 4)
    case = Case(Map(formula([f.rank(0)], 40_000), True), tensors, base)
    with place("tiled", [case]) as backend, pytest.raises(DeviceError, match="--device-memory"):
        carry_out(backend, [case])
