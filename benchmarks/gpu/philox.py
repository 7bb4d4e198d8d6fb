"""What random drops cost: drawing 16 bits per element against 32, drawn masks against thresholds."""

from __future__ import annotations

import statistics

import torch
from warpmerge.backends.reference.backend import philox_lanes
from warpmerge.requests import RandomMask, TopKMask

from ..operands import WEIGHTS
from .harness import Bench
from .kernels import CUT, operands_for
from .problem import Operands, Problem

KEY = 0x1234567


def run(bench: Bench) -> None:
    if bench.backend == "triton":
        drawing(bench)
    elect_and_sum(bench)


def drawing(bench: Bench) -> None:
    """By a Triton kernel of its own, whatever the backend."""
    from .draws import CALLS, STEPS, count_below

    median = {}
    for bits in (16, 32):
        each = 128 // bits
        programs = max(1, bench.sizes.draws // (each * CALLS * STEPS))
        counts = torch.zeros(programs, dtype=torch.int32, device=bench.device)

        def draw(bits: int = bits, programs: int = programs, counts: torch.Tensor = counts) -> None:
            count_below[(programs,)](KEY, CUT, counts, BITS=bits, CALLS=CALLS, STEPS=STEPS)

        draw()
        drawn = each * CALLS * STEPS
        share = int(counts.sum(dtype=torch.int64)) / (drawn * programs)
        assert abs(share - CUT / 65536) < 5 * 0.5 / (drawn * programs) ** 0.5, f"{share:.4f} of the numbers are below"
        if bits == 16:
            wanted = int((philox_lanes(KEY, drawn) < CUT).sum())
            assert int(counts[0]) == wanted, f"{int(counts[0])} numbers are below the limit, not {wanted}"
        seconds = bench.clock.queued(draw, bench.sizes.repetitions)
        median[bits] = statistics.median(seconds) / (drawn * programs)
        bench.row(
            "gpu drawing",
            f"{bits} bits each, nothing but drawing",
            seconds,
            numbers=drawn * programs,
            **{"ns/number": median[bits] * 1e9},
            ratio=median[bits] / median[16],
        )


def elect_and_sum(bench: Bench) -> None:
    """The same launch with either rule, in turn."""
    dtype, models = bench.sizes.kernel_cases[0]
    operands = operands_for(bench)
    count = max(8, bench.sizes.kernel_bytes // (2 * (models + 1)) // 8 * 8)
    rules = {  # either keeps about half
        "threshold": tuple(TopKMask(_median_key(operands, dtype, k + 1, count)) for k in range(models)),
        "drawn": tuple(RandomMask(KEY + k, CUT) for k in range(models)),
    }
    median = {}
    for name, keep in rules.items():
        p = Problem(
            bench.backend,
            operands,
            dtype,
            models,
            count,
            base=True,
            output=True,
            numbers=lambda k: (*WEIGHTS[:k], *WEIGHTS[:k], *WEIGHTS[:k], 1.0),
            keep=keep,
        )
        seconds = bench.clock.queued(
            lambda p=p: p.kernels.elect_and_sum(p.stream, p.launch, False, p.nonfinite.data_ptr()),
            bench.sizes.repetitions,
        )
        median[name] = statistics.median(seconds)
        bench.row(
            "gpu drawing",
            f"elect_and_sum without election, {name}",
            seconds,
            dtype=dtype,
            models=models,
            numbers=models * count,
            **{"ns/number": median[name] / (models * count) * 1e9},
            ratio=median[name] / median["threshold"],
        )


def _median_key(operands: Operands, dtype: str, index: int, count: int) -> int:
    """The key of a delta's median magnitude, from its first elements."""
    part = min(count, 1 << 20)
    delta = operands.tensor(dtype, index, part).float() - operands.tensor(dtype, 0, part).float()
    return int(delta.abs().median().view(torch.int32))
