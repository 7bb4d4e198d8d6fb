"""Results that are too large for their dtype, on the emulated device: counted and settled as the reference does it."""

import pytest
import torch
from device_cases import IN_PLACE, PLACES, Case, carry_out, compare, place
from device_modes import FIXTURES
from kernel_helpers import unaligned
from overflow_cases import KINDS, OUT, at_the_end, large, requests, too_large
from warpmerge.backends.gpu.tables import CHUNK
from warpmerge.requests import WeightedSum

(emulation,) = FIXTURES
MODES = (*PLACES, IN_PLACE)


@pytest.mark.parametrize("policy", ["error", "base"])
@pytest.mark.parametrize("kind", KINDS)
def test_requests(kind, policy):
    cases = []
    for models, count in ((3, CHUNK + 4099), (2, 99), (9, 515)):
        base, tensors, out = large(kind, models, count)
        for request, outputs in requests(models):
            start = base if request.on_deltas else None
            cases.append(Case(request, tensors, start, outputs=outputs, out_dtype=out, nonfinite=policy))
    base, tensors, out = large(kind, 3, 2055)
    shifted = [unaligned(t) for t in tensors]
    for request, outputs in requests(3):
        start = unaligned(base) if request.on_deltas else None
        cases.append(Case(request, shifted, start, outputs=outputs, out_dtype=out, nonfinite=policy))
    compare(cases, MODES)


@pytest.mark.parametrize("mode", MODES)
def test_every_result_at_the_limit_is_counted(mode):
    cases, wanted = [], []
    for source in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        for out in OUT:
            values = at_the_end(torch.float64, out, CHUNK + 777).to(source)
            convert = WeightedSum((1.0,), on_deltas=False, agree=True)
            cases.append(Case(convert, [values], out_dtype=out, nonfinite="error"))
            wanted.append((int((~values.isfinite()).sum()), 0, too_large(values, out)))
    with place(mode, cases) as backend:
        got, _ = carry_out(backend, cases, mode == IN_PLACE)
    assert [outcome.nonfinite for outcome in got] == wanted
