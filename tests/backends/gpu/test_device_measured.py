"""What is measured of a formula's values on the emulated device, in scratch of bounded size."""

import numpy as np
import pytest
from device_cases import IN_PLACE, PLACES, TILED, Case, carry_out, compare, place
from device_modes import FIXTURES
from formula_helpers import KEY, adversarial, formula, is_wide, random_values
from kernel_helpers import ALL_DTYPES, family, reference
from warpmerge.backends.gpu import residency
from warpmerge.backends.gpu.tables import BLOCK
from warpmerge.backends.gpu.tiles import CHUNK_ENDS, SegmentEnds
from warpmerge.expr import expression as f
from warpmerge.requests import KthLargest, Reduce

(emulation,) = FIXTURES


@pytest.mark.parametrize("mode", [*PLACES, "small batches", IN_PLACE])
def test_measured_values(mode):
    """Sums and selections; what is not finite is counted in the inputs, once."""
    cases = []
    for seed, dtype in enumerate(ALL_DTYPES):
        models, count = (1, 3)[seed % 2], (TILED, 9001)[seed // 2 % 2]
        base, tensors = (adversarial if seed % 2 else family)(dtype, models, count, seed=seed)
        values = formula([*random_values(seed, models, outputs=2), f.delta(0) * 0.5])
        policy = ("error", "base")[seed % 2]
        counts = (count // 2, max(1, count // 50), 0)
        for request in [
            Reduce("sum", values),
            KthLargest(counts, of=values),
            KthLargest(counts, keep_all_ties=True, of=values),
        ]:
            cases.append(Case(request, tensors, base, nonfinite=policy))
    compare(cases, [mode])


@pytest.mark.parametrize(("budget", "tiles"), [(1 << 14, 7), (1 << 17, 2), (1 << 20, 1)])
def test_value_scratch_is_bounded(monkeypatch, budget, tiles):
    """Measured tile by tile, with the same result; a single one is evaluated once for all sweeps."""
    monkeypatch.setattr(residency, "VALUE_SCRATCH", budget)
    values = formula([f.delta(0) * f.delta(1), f.draw(KEY) + f.delta(0)])
    sizes = [5 * BLOCK + 99, *range(100, 120)]
    selected, reduced = ([], [])
    for count in sizes:
        base, tensors = family("bf16", 2, count)
        selected.append(Case(KthLargest((90, 7), of=values), tensors, base))
        reduced.append(Case(Reduce("sum", values), tensors, base))
    compare(selected + reduced, ["resident", IN_PLACE])
    with place("resident", selected) as backend:
        evaluated, swept = [], []
        formulas, sweeps = backend.kernels.formula, backend.kernels.select_sweep
        backend.kernels.formula = lambda *arguments: (evaluated.append(1), formulas(*arguments))
        backend.kernels.select_sweep = lambda *arguments: (swept.append(1), sweeps(*arguments))
        carry_out(backend, selected)
        [workspace] = backend._workspaces
        least = 2 * 4 * BLOCK  # two values of the elements of a block
        assert 0 < workspace.value_scratch(0, 0).nbytes <= max(budget, least)
    assert len(swept) % tiles == 0 and len(swept) > tiles
    # Evaluated again for each sweep over the keys, and for the two that look for ties.
    assert len(evaluated) == (1 if tiles == 1 else len(swept) + 2 * tiles)


@pytest.mark.parametrize(
    "ends",
    [CHUNK_ENDS, SegmentEnds(7), SegmentEnds(5000, within=True), SegmentEnds(BLOCK * 3), SegmentEnds(3, within=True)],
)
def test_segment_ends(ends):
    """At multiples of the unit, or within at whole blocks; as much as fits, and never nothing where something may."""
    end = 40_000
    for fits in (1, 6, 4096, 9000, 20_000, 50_000):
        first = 0
        while first < end:
            count = ends.most(first, end, fits)
            assert 0 <= count <= max(fits, 0)
            least = ends.least(first, end)
            assert least >= 1 and (count == 0) == (fits < least)
            first += count or least
            start = first // ends.unit * ends.unit
            assert first in (end, start) or (ends.within and (first - start) % BLOCK == 0)


def intervals(fp64):
    one = 0x3FF << 52 if fp64 else 127 << 23
    return ((0, 2**63 - 1 if fp64 else 2**31 - 1), (one >> 1, one), (one - 100, one + 100), (5, 5))


@pytest.mark.parametrize("mode", [*PLACES, IN_PLACE])
def test_histograms(mode):
    """As many bins as the backend likes: each the keys that the reference has there."""
    for dtype in ("bf16", "fp64"):
        base, tensors = adversarial(dtype, 2, TILED)
        fp64 = is_wide(dtype)
        values = [f.delta(0), f.delta(1) * 0.5, f.delta(0) + f.delta(1), f.base()]
        cases = [
            Case(Reduce("histogram", intervals=intervals(fp64)[:2]), tensors, base),
            Case(Reduce("histogram", formula(values), intervals=intervals(fp64)), tensors, base),
        ]
        with place(mode, cases) as backend:
            got, _ = carry_out(backend, cases, mode == IN_PLACE)
        for case, outcome, wanted in zip(cases, got, carry_out(reference(), cases)[0], strict=True):
            assert outcome.nonfinite == wanted.nonfinite
            for (low, high), one, other in zip(case.request.intervals, outcome.value, wanted.value, strict=True):
                assert (one.above, one.bins.sum()) == (other.above, other.bins.sum())
                assert len(one.bins) == 2048 and (high - low) >> one.shift < 2048
                assert one.shift == 0 or (high - low) >> (one.shift - 1) >= 2048
                coarse = other.bins.reshape(-1, 1 << (one.shift - other.shift)).sum(1)
                both = min(len(coarse), len(one.bins))
                assert np.array_equal(coarse[:both], one.bins[:both])
                assert not coarse[both:].any() and not one.bins[both:].any()
