"""elect_and_sum over chunks: masks, an election and the sum of the agreeing terms (csrc/ops/elect_and_sum.h).

An accelerator for an expression of expr/library.py. A program keeps the deltas of all models of a step in registers, so
each input is read once. Masks are read anew in each step, because the masks of all models would take more registers
than there are. Sums run in the order of the models, so the bits are those of the expression.
"""

import triton.language as tl

from .deltas import load_addresses, load_coefficients, load_deltas, settle_results
from .elements import CHUNK, INFINITY32, INFINITY64, SLOWER, add_delta, counters_of, device, pointer, segment_of, store
from .geometry import kernel, run, shared, step
from .masks import drop, load_rule


@device
def _merge(d, c, FP64: tl.constexpr, ELECT: tl.constexpr):
    """The merged delta. `c`: a value per model, a vote per model, a divisor per model, lambda."""
    models: tl.constexpr = len(d)
    total = tl.zeros_like(d[0])
    if not ELECT:
        for k in tl.static_range(models):
            total = total + d[k] * c[k]
        return total * c[3 * models]
    else:
        votes = tl.zeros_like(total)
        for k in tl.static_range(models):
            votes = votes + d[k] * c[models + k]
        negative = votes < 0
        divisor = tl.zeros_like(total)
        for k in tl.static_range(models):
            vote = d[k] * c[models + k]
            agrees = tl.where(negative, vote < 0, vote > 0)
            total = total + tl.where(agrees, d[k] * c[k], 0.0)
            divisor = divisor + tl.where(agrees, c[2 * models + k], 0.0)
        divisor = tl.where(divisor == 0, 1.0, divisor)
        mean = total / divisor if FP64 else tl.div_rn(total, divisor)
        return tl.where(votes == votes, mean * c[3 * models], votes)


@device
def _step(start, sources, base_source, target, c, rules, segment, index, begin, length, counters, INPUTS: tl.constexpr,
          BASE: tl.constexpr, OUT: tl.constexpr, FP64: tl.constexpr, TO_ZERO: tl.constexpr, ELECT: tl.constexpr,
          ALIGNED: tl.constexpr, COUNT: tl.constexpr, STEP: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    """Writes the output of one step; returns the largest magnitude key of the deltas at each element."""
    offset = start + tl.arange(0, STEP)
    d, base, top, sound = load_deltas(sources, base_source, begin, offset, length, counters, INPUTS, BASE, FP64,
                                      TO_ZERO, ALIGNED, COUNT, MASKED)  # fmt: skip
    calls = (index + start) // 8 + tl.arange(0, STEP // 8)
    kept = ()
    for k in tl.static_range(len(INPUTS)):
        # Loaded anew in each step: kept for all models they would take more registers than there are.
        rule = load_rule(rules, segment, k, index, len(INPUTS), FP64)
        kept = kept + (drop(d[k], rule, offset, calls, FP64),)  # noqa: RUF005
    y = add_delta(base, _merge(kept, c, FP64, ELECT))
    y, top = settle_results(y, base, top, sound, offset, length, counters + len(INPUTS) + 1, BASE, OUT, FP64, TO_ZERO,
                            COUNT, MASKED)  # fmt: skip
    store(target, begin, offset, length, y, OUT, FP64, ALIGNED, MASKED)
    return top


@kernel
def _kernel(segment_rows: tl.int64, chunk_map: tl.int64, numbers: tl.int64, rules: tl.int64, nonfinite: tl.int64,
            INPUTS: tl.constexpr, BASE: tl.constexpr, OUT: tl.constexpr, FP64: tl.constexpr, TO_ZERO: tl.constexpr,
            ELECT: tl.constexpr, ALIGNED: tl.constexpr, COUNT: tl.constexpr, STEP: tl.constexpr):  # fmt: skip
    models: tl.constexpr = len(INPUTS)
    infinity: tl.constexpr = INFINITY64 if FP64 else INFINITY32
    segment, row, begin, length = segment_of(tl.program_id(0), segment_rows, chunk_map, 8 + models)
    base_source = tl.load(row + 6)
    sources = load_addresses(row, 7, models)
    target = tl.load(row + 7 + models)
    c = load_coefficients(pointer(numbers, tl.float64) + segment * (3 * models + 1), 3 * models + 1, FP64)
    index = tl.load(row + 1) + begin
    counters = counters_of(nonfinite, tl.load(row + 3), models)
    largest = tl.full((), infinity, tl.int64 if FP64 else tl.int32)
    if length == CHUNK:
        tops = tl.zeros((STEP,), tl.int64 if FP64 else tl.int32)
        for start in range(0, CHUNK, STEP):
            top = _step(start, sources, base_source, target, c, rules, segment, index, begin, length, counters,
                        INPUTS, BASE, OUT, FP64, TO_ZERO, ELECT, ALIGNED, COUNT, STEP, False)  # fmt: skip
            tops = tl.maximum(tops, top)
        largest = tl.max(tops, axis=0)
    if largest >= infinity:
        start = 0
        while start < length:
            _step(start, sources, base_source, target, c, rules, segment, index, begin, length, counters, INPUTS, BASE,
                  OUT, FP64, TO_ZERO, ELECT, ALIGNED, COUNT, STEP // SLOWER, True)  # fmt: skip
            start += STEP // SLOWER


def launch(launch, elect, nonfinite):
    warps = 8
    run(_kernel, (launch.chunks,), launch.segment_rows, launch.chunk_map, launch.numbers, launch.rules, nonfinite,
        INPUTS=tuple(launch.inputs), OUT=launch.out, ELECT=bool(elect), STEP=step(launch, 2 * launch.models + 3, warps),
        warps=warps, registers=None if launch.fp64 and launch.models > 4 else 128,
        **shared(launch, nonfinite))  # fmt: skip
