"""Sums over a tensor in the compute type, in the order of csrc/ops/reduce.h.

A program has a chunk of one model: its blocks lie side by side. `kept_sums` is an accelerator for sums of |d| and
|mask(d)|: the deltas are read once and never written, as values of a formula are.
"""

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
    counters_of,
    device,
    magnitude,
    member,
    pointer,
    segment_of,
)
from .geometry import kernel, models_by_dtype, run, shared
from .masks import drop, load_rule
from .sums import lane_calls, lane_offsets, sum_lanes


@device
def _pass(block, source, base_source, begin, call, length, rule, counters, k, partials, INPUT: tl.constexpr,
          MODELS: tl.constexpr, BASE: tl.constexpr, FP64: tl.constexpr, KEPT: tl.constexpr, ALIGNED: tl.constexpr,
          COUNT: tl.constexpr, BLOCKS: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    """Writes the partials of some blocks of the chunk; returns the largest magnitude key."""
    zeros = tl.zeros((BLOCKS * LANES,), tl.float64 if FP64 else tl.float32)
    total, kept_total = zeros, zeros
    tops = tl.zeros((BLOCKS * LANES,), tl.int64 if FP64 else tl.int32)
    for row in range(ROWS):
        offset = lane_offsets(block, row, BLOCKS)
        d, top = load_delta(source, base_source, begin, offset, length, counters, k, INPUT, BASE, MODELS, FP64, True,
                            ALIGNED, COUNT, MASKED)  # fmt: skip
        if KEPT:
            kept = drop(d, rule, offset, lane_calls(call, block, row, BLOCKS), FP64)
            total = total + magnitude(d, FP64)
            kept_total = kept_total + magnitude(kept, FP64)
        else:
            total = total + d
        tops = tl.maximum(tops, top)
    block += tl.arange(0, BLOCKS)
    exists = block * BLOCK < length
    at = partials + (block.to(tl.int64) * MODELS + k) * (2 if KEPT else 1)
    tl.store(at, sum_lanes(total), mask=exists)
    if KEPT:
        tl.store(at + 1, sum_lanes(kept_total), mask=exists)
    return tl.max(tops, axis=0)


@kernel
def _kernel(segment_rows: tl.int64, chunk_map: tl.int64, rules: tl.int64, partials: tl.int64, nonfinite: tl.int64,
            INPUT: tl.constexpr, MEMBERS: tl.constexpr, MODELS: tl.constexpr, OUTPUTS: tl.constexpr,
            BASE: tl.constexpr, FP64: tl.constexpr, KEPT: tl.constexpr, ALIGNED: tl.constexpr,
            COUNT: tl.constexpr):  # fmt: skip
    infinity: tl.constexpr = INFINITY64 if FP64 else INFINITY32
    k = member(tl.program_id(0) % len(MEMBERS), MEMBERS)
    chunk = tl.program_id(0) // len(MEMBERS)
    segment, row, begin, length = segment_of(chunk, segment_rows, chunk_map, 7 + MODELS + OUTPUTS)
    base_source, source = tl.load(row + 6), tl.load(row + 7 + k)
    index = tl.load(row + 1) + begin
    rule = load_rule(rules, segment, k, index, MODELS, FP64) if KEPT else ()
    counters = counters_of(nonfinite, tl.load(row + 3), MODELS)
    first_block = tl.load(row + 4) + begin // BLOCK
    at = pointer(partials, tl.float64) + first_block * (MODELS * (2 if KEPT else 1))
    largest = tl.full((), infinity, tl.int64 if FP64 else tl.int32)
    if length == CHUNK:
        largest = _pass(0, source, base_source, begin, index // 8, length, rule, counters, k, at, INPUT, MODELS, BASE,
                        FP64, KEPT, ALIGNED, COUNT, BLOCKS, False)  # fmt: skip
    if largest >= infinity:
        block = 0
        while block * BLOCK < length:
            _pass(block, source, base_source, begin, index // 8, length, rule, counters, k, at, INPUT, MODELS, BASE,
                  FP64, KEPT, ALIGNED, COUNT, BLOCKS // SLOWER, True)  # fmt: skip
            block += BLOCKS // SLOWER


def sums(launch, partials, nonfinite):
    _launch(launch, False, partials, nonfinite)


def kept_sums(launch, partials, nonfinite):
    _launch(launch, True, partials, nonfinite)


def _launch(launch, kept, partials, nonfinite):
    constants = shared(launch, nonfinite)
    del constants["TO_ZERO"]  # sums are taken over the finite elements
    for code, members in models_by_dtype(launch):
        run(_kernel, (launch.chunks * len(members),), launch.segment_rows, launch.chunk_map, launch.rules, partials,
            nonfinite, INPUT=code, MEMBERS=members, MODELS=launch.models, OUTPUTS=launch.outputs,
            KEPT=kept, warps=4, registers=None if launch.fp64 else 128, **constants)  # fmt: skip
