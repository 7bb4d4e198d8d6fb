"""weighted_sum over chunks: csrc/ops/weighted_sum.h, as csrc/cpu/weighted_sum.inl has it."""

import triton.language as tl

from .deltas import load_addresses, load_coefficients, load_deltas
from .elements import (
    CHUNK,
    INFINITY32,
    INFINITY64,
    NO_BASE,
    SLOWER,
    add_delta,
    bits_of,
    device,
    pointer,
    segment_of,
    store,
)
from .geometry import kernel, run, shared, step


@device
def _step(start, sources, base_source, targets, c, begin, length, counters, INPUTS: tl.constexpr,
          OUTPUTS: tl.constexpr, BASE: tl.constexpr, OUT: tl.constexpr, FP64: tl.constexpr, TO_ZERO: tl.constexpr,
          AGREE: tl.constexpr, ALIGNED: tl.constexpr, COUNT: tl.constexpr, STEP: tl.constexpr,
          MASKED: tl.constexpr):  # fmt: skip
    """Writes the outputs of one step; returns the largest magnitude key of the deltas at each element."""
    models: tl.constexpr = len(INPUTS)
    offset = start + tl.arange(0, STEP)
    d, base, top = load_deltas(sources, base_source, begin, offset, length, counters, INPUTS, BASE, FP64, TO_ZERO,
                               ALIGNED, COUNT, MASKED)  # fmt: skip
    if AGREE:
        differ = tl.zeros_like(top)
        for k in tl.static_range(1, models):
            differ |= bits_of(d[k], FP64) ^ bits_of(d[0], FP64)
    for m in tl.static_range(OUTPUTS):
        y = d[0] * c[m * models]
        for k in tl.static_range(1, models):
            y = y + d[k] * c[m * models + k]
        if BASE != NO_BASE:
            y = add_delta(base, y)
        elif AGREE:
            y = tl.where(differ == 0, d[0], y)
        store(targets[m], begin, offset, length, y, OUT, FP64, ALIGNED, MASKED)
    return top


@kernel
def _kernel(segment_rows: tl.int64, chunk_map: tl.int64, numbers: tl.int64, nonfinite: tl.int64, INPUTS: tl.constexpr,
            OUTPUTS: tl.constexpr, BASE: tl.constexpr, OUT: tl.constexpr, FP64: tl.constexpr, TO_ZERO: tl.constexpr,
            AGREE: tl.constexpr, ALIGNED: tl.constexpr, COUNT: tl.constexpr, STEP: tl.constexpr):  # fmt: skip
    models: tl.constexpr = len(INPUTS)
    infinity: tl.constexpr = INFINITY64 if FP64 else INFINITY32
    segment, row, begin, length = segment_of(tl.program_id(0), segment_rows, chunk_map, 7 + models + OUTPUTS)
    base_source = tl.load(row + 6)
    sources = load_addresses(row, 7, models)
    targets = load_addresses(row, 7 + models, OUTPUTS)
    c = load_coefficients(pointer(numbers, tl.float64) + segment * (OUTPUTS * models), OUTPUTS * models, FP64)
    counters = pointer(nonfinite, tl.int64) + tl.load(row + 3) * (models + 1)
    largest = tl.full((), infinity, tl.int64 if FP64 else tl.int32)
    if length == CHUNK:
        tops = tl.zeros((STEP,), tl.int64 if FP64 else tl.int32)
        for start in range(0, CHUNK, STEP):
            top = _step(start, sources, base_source, targets, c, begin, length, counters, INPUTS, OUTPUTS, BASE, OUT,
                        FP64, TO_ZERO, AGREE, ALIGNED, COUNT, STEP, False)  # fmt: skip
            tops = tl.maximum(tops, top)
        largest = tl.max(tops, axis=0)
    if largest >= infinity:
        start = 0
        while start < length:
            _step(start, sources, base_source, targets, c, begin, length, counters, INPUTS, OUTPUTS, BASE, OUT, FP64,
                  TO_ZERO, AGREE, ALIGNED, COUNT, STEP // SLOWER, True)  # fmt: skip
            start += STEP // SLOWER


def launch(launch, agree, nonfinite):
    warps = 8
    run(_kernel, (launch.chunks,), launch.segment_rows, launch.chunk_map, launch.numbers, nonfinite,
        INPUTS=tuple(launch.inputs), OUTPUTS=launch.outputs, OUT=launch.out, AGREE=bool(agree),
        STEP=step(launch, launch.models + 2, warps), warps=warps, **shared(launch, nonfinite))  # fmt: skip
