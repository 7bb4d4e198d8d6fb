"""Selection by the CUDA kernels, on data that is meant to hurt: what is kept is what the CPU keeps."""

import pytest
import torch
from device_modes import BOTH, FIXTURES, compare, device
from kernel_helpers import DTYPES, run, task, weights
from test_equality_adversarial import DELTAS, alternating, clustered, one_apart
from warpmerge.backends.gpu.tables import CHUNK
from warpmerge.requests import NO_TIE_END, KthLargest

(emulation,) = FIXTURES

SAMPLED = 4 * CHUNK + 999  # `select` begins with a sample

# --- select ---------------------------------------------------------------------------------------------------------


def rising(count):
    """A sample of any one part misleads."""
    return torch.linspace(0, 1, count) ** 3


def late_and_large(count):
    """All that is selected lies in the last chunk."""
    d = torch.rand(count, generator=torch.Generator().manual_seed(1)) * 1e-4
    d[-CHUNK // 2 :] += torch.rand(CHUNK // 2, generator=torch.Generator().manual_seed(2))
    return d


def two_values(count):
    return torch.where(torch.arange(count) % 3 == 0, 0.75, -0.25)


def a_few_large(count):
    d = torch.zeros(count)
    d[:: count // 7] = 3.0
    return d


HARD = [*DELTAS, rising, late_and_large, two_values, a_few_large]


def selections(deltas, dtype, count):
    values = deltas(count).to(DTYPES[dtype])
    tensors = [values, values.flip(0), (0.3 * values).roll(777)]
    mixed = [0.999, 0.02, 0.6]
    for density, policy in [
        (0.1, "keep_all"),
        (mixed, "lowest_index"),
        (1 / count, "lowest_index"),
        (0.9, "lowest_index"),
        (mixed, "keep_all"),
    ]:
        parameters = {"weight": weights(3), "density": density, "ties": policy}
        yield (deltas.__name__, count, density, policy), (("ties", tensors, torch.zeros_like(values)), parameters)


@pytest.mark.parametrize("dtype", ["bf16", "fp32", "fp64"])
@pytest.mark.parametrize("deltas", HARD)
def test_selection(deltas, dtype):
    compare(list(selections(deltas, dtype, CHUNK + 4099)), ["tiled, late" if dtype == "fp32" else "resident"])


@pytest.mark.parametrize("dtype", ["bf16", "fp32", "fp64"])
@pytest.mark.parametrize("deltas", [clustered, one_apart, alternating, rising, late_and_large, two_values, a_few_large])
def test_selection_after_a_sample(deltas, dtype):
    cases = list(selections(deltas, dtype, SAMPLED))
    compare(cases[:2], ["tiled, late" if dtype == "bf16" else "resident"])


@pytest.mark.parametrize("mode", BOTH)
@pytest.mark.parametrize("dtype", ["bf16", "fp32", "fp64"])
@pytest.mark.parametrize("deltas", [two_values, clustered, rising, late_and_large])
def test_what_a_selection_counts(deltas, dtype, mode):
    """Against a sort: the threshold, how many lie above it and on it, and where the last one to keep is."""
    values = deltas(SAMPLED).to(DTYPES[dtype])
    counts = (SAMPLED // 10,)
    made, _ = task("ties", [values], torch.zeros_like(values), weight=1, density=0.1)
    found = []

    class Asks:
        name = "asks"

        def steps(self, tensor, p):
            (selection,) = yield KthLargest(counts)
            found.append(selection)
            return (yield from ties(tensor, p))

    ties, made.group.method = made.method.steps, Asks()
    with device(mode, [made]) as backend:
        run(backend, (made, None))
    (got,) = found
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()]
    fp64 = values.abs() if values.element_size() > 2 else values.abs().float()
    keys = fp64.view(integers if values.element_size() > 2 else torch.int32).long()
    threshold = int(keys.sort(descending=True).values[counts[0] - 1])
    above, ties = int((keys > threshold).sum()), torch.nonzero(keys == threshold).flatten()
    assert (got.threshold, got.above, got.ties) == (threshold, above, len(ties))
    kept = counts[0] - above
    if got.tie_end == NO_TIE_END:
        assert kept == len(ties)
    else:
        assert int((ties < got.tie_end).sum()) == kept


@pytest.mark.parametrize("border", [4096, CHUNK, 2 * CHUNK])  # of a block, of a chunk, of a tile
def test_the_last_kept_tie_at_a_border(border):
    count = 2 * CHUNK + 5000
    base = torch.zeros(count)
    cases = []
    for kept in range(border - 1, border + 2):
        parameters = {"weight": 1, "density": (kept + 0.5) / count}
        cases.append((kept, (("ties", [alternating(count)], base), parameters)))
    for (kept, _), wanted in zip(cases, compare(cases, ["resident", "tiled"]), strict=True):
        assert int((wanted != 0).sum()) == int((wanted[:kept] != 0).sum()) == kept
