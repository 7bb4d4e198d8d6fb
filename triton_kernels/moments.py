"""moments over chunks, one program per chunk and model: csrc/ops/moments.h, as csrc/cpu/moments.inl has it."""

import triton.language as tl

from .deltas import load_delta
from .elements import (
    BLOCK,
    BLOCKS,
    CHUNK,
    INFINITY32,
    INFINITY64,
    LANES,
    ROWS,
    SLOWER,
    device,
    magnitude,
    member,
    pointer,
    segment_of,
)
from .geometry import kernel, models_by_dtype, run, shared
from .masks import drop, load_rule
from .sums import lane_calls, lane_offsets, sum_counts, sum_lanes


@device
def _pass(block, source, base_source, begin, call, length, rule, counters, k, partials, INPUT: tl.constexpr,
          MODELS: tl.constexpr, BASE: tl.constexpr, WIDE: tl.constexpr, ONLY_L1: tl.constexpr, ALIGNED: tl.constexpr,
          COUNT: tl.constexpr, BLOCKS: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    """Writes the partials of some blocks of the chunk; returns the largest magnitude key."""
    compute: tl.constexpr = tl.float64 if WIDE else tl.float32
    zeros = tl.zeros((BLOCKS * LANES,), compute)
    sum_abs, kept_abs, sum_sq = zeros, zeros, zeros
    low, high = zeros + float("inf"), zeros - float("inf")
    nonzero = tl.zeros((BLOCKS * LANES,), tl.int32)
    kept_count = nonzero
    tops = tl.zeros((BLOCKS * LANES,), tl.int64 if WIDE else tl.int32)
    for row in range(ROWS):
        offset = lane_offsets(block, row, BLOCKS)
        d, top = load_delta(source, base_source, begin, offset, length, counters, k, INPUT, BASE, MODELS, WIDE, True,
                            ALIGNED, COUNT, MASKED)  # fmt: skip
        kept = drop(d, rule, offset, lane_calls(call, block, row, BLOCKS), WIDE)
        sum_abs = sum_abs + magnitude(d, WIDE)
        kept_abs = kept_abs + magnitude(kept, WIDE)
        tops = tl.maximum(tops, top)
        if not ONLY_L1:
            sum_sq = sum_sq + d * d
            nonzero += (d != 0).to(tl.int32)
            kept_count += (kept != 0).to(tl.int32)
            if MASKED:
                inside = offset < length
                low = tl.minimum(low, tl.where(inside, d, float("inf")))
                high = tl.maximum(high, tl.where(inside, d, float("-inf")))
            else:
                low = tl.minimum(low, d)
                high = tl.maximum(high, d)
    block += tl.arange(0, BLOCKS)
    exists = block * BLOCK < length
    columns: tl.constexpr = 2 if ONLY_L1 else 7
    at = partials + (block.to(tl.int64) * MODELS + k) * columns
    tl.store(at, sum_lanes(sum_abs), mask=exists)
    if ONLY_L1:
        tl.store(at + 1, sum_lanes(kept_abs), mask=exists)
    else:
        least = tl.min(tl.reshape(low, (BLOCKS, LANES)), axis=1).to(tl.float64)
        most = tl.max(tl.reshape(high, (BLOCKS, LANES)), axis=1).to(tl.float64)
        tl.store(at + 1, sum_lanes(sum_sq), mask=exists)
        tl.store(at + 2, sum_lanes(kept_abs), mask=exists)
        tl.store(at + 3, tl.where(least == 0, 0.0, least), mask=exists)
        tl.store(at + 4, tl.where(most == 0, 0.0, most), mask=exists)
        tl.store(at + 5, sum_counts(nonzero, BLOCKS).to(tl.float64), mask=exists)
        tl.store(at + 6, sum_counts(kept_count, BLOCKS).to(tl.float64), mask=exists)
    return tl.max(tops, axis=0)


@kernel
def _kernel(places: tl.int64, chunk_map: tl.int64, keeps: tl.int64, partials: tl.int64, nonfinite: tl.int64,
            INPUT: tl.constexpr, MEMBERS: tl.constexpr, MODELS: tl.constexpr, OUTPUTS: tl.constexpr,
            BASE: tl.constexpr, WIDE: tl.constexpr, ONLY_L1: tl.constexpr, ALIGNED: tl.constexpr,
            COUNT: tl.constexpr):  # fmt: skip
    infinity: tl.constexpr = INFINITY64 if WIDE else INFINITY32
    k = member(tl.program_id(0) % len(MEMBERS), MEMBERS)
    chunk = tl.program_id(0) // len(MEMBERS)
    segment, row, begin, length = segment_of(chunk, places, chunk_map, 7 + MODELS + OUTPUTS)
    base_source, source = tl.load(row + 6), tl.load(row + 7 + k)
    index = tl.load(row + 1) + begin
    rule = load_rule(keeps, segment, k, index, MODELS, WIDE)
    counters = pointer(nonfinite, tl.int64) + tl.load(row + 3) * (MODELS + 1)
    first_block = tl.load(row + 4) + begin // BLOCK
    at = pointer(partials, tl.float64) + first_block * (MODELS * (2 if ONLY_L1 else 7))
    largest = tl.full((), infinity, tl.int64 if WIDE else tl.int32)
    if length == CHUNK:
        largest = _pass(0, source, base_source, begin, index // 8, length, rule, counters, k, at, INPUT, MODELS, BASE,
                        WIDE, ONLY_L1, ALIGNED, COUNT, BLOCKS, False)  # fmt: skip
    if largest >= infinity:
        block = 0
        while block * BLOCK < length:
            _pass(block, source, base_source, begin, index // 8, length, rule, counters, k, at, INPUT, MODELS, BASE,
                  WIDE, ONLY_L1, ALIGNED, COUNT, BLOCKS // SLOWER, True)  # fmt: skip
            block += BLOCKS // SLOWER


def launch(launch, only_l1, partials, nonfinite):
    constants = shared(launch, nonfinite)
    del constants["TO_ZERO"]  # sums are taken over the finite elements
    for code, members in models_by_dtype(launch):
        run(_kernel, (launch.chunks * len(members),), launch.places, launch.chunk_map, launch.keeps, partials,
            nonfinite, INPUT=code, MEMBERS=members, MODELS=launch.models, OUTPUTS=launch.outputs,
            ONLY_L1=bool(only_l1), warps=4, registers=None if launch.fp64 else 128, **constants)  # fmt: skip
