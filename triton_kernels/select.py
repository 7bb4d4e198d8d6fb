"""Exact selection by magnitude: sweeps count keys in bins, `shrink_interval` picks the bin with the rank.

One program per chunk and model, as in reduce_tensor.py. Per tensor and model `state` holds: target rank, low, high,
keys above high, keys inside, end of the ties, status, and for ties the block and the rank within. See
csrc/ops/select.h.
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
    magnitude_key,
    member,
    pointer,
    segment_of,
    settle,
)
from .geometry import kernel, models_by_dtype, run, shared, step
from .sums import lane_offsets, sum_counts

BINS = tl.constexpr(256)  # of the 2048 that there is room for: a histogram in a program costs by its bins
ABOVE = tl.constexpr(2048)
BIN_ROW = tl.constexpr(2050)
STATE_ROW = tl.constexpr(8)
SEARCHING, LOCATING, DONE = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
RANK_BITS = tl.constexpr(20)
STEP_OF_BLOCKS = tl.constexpr(1024)
SAMPLED = tl.constexpr(4096)
SMALL = tl.constexpr(65536)  # elements up to which a sample saves nothing


@device
def _shift(low, high):
    """The least number of bits such that bins of 2^shift keys cover [low, high]."""
    too_narrow = ((high - low) >> tl.arange(0, 64)) >= BINS
    return tl.sum(too_narrow.to(tl.int32), axis=0)


@device
def _keys(source, base_source, begin, offset, length, counters, k, INPUT: tl.constexpr, BASE: tl.constexpr,
          MODELS: tl.constexpr, FP64: tl.constexpr, TO_ZERO: tl.constexpr, ALIGNED: tl.constexpr, COUNT: tl.constexpr,
          MASKED: tl.constexpr):  # fmt: skip
    """Magnitude keys of the settled deltas, -1 past the end, and those before settling."""
    d, top = load_delta(source, base_source, begin, offset, length, counters, k, INPUT, BASE, MODELS, FP64, TO_ZERO,
                        ALIGNED, COUNT, MASKED)  # fmt: skip
    if MASKED:
        return tl.where(offset < length, magnitude_key(d, FP64), -1), top
    else:
        return magnitude_key(settle(d, TO_ZERO, FP64), FP64), top


@device
def _load_state(state, tensor, k, MODELS: tl.constexpr):
    at = pointer(state, tl.int64) + (tensor * MODELS + k) * STATE_ROW
    return at, tl.load(at + 6)


@device
def _sampled_key(keys, rank, FP64: tl.constexpr):
    """The key of this rank among the sampled ones, bit by bit from the highest."""
    found = tl.zeros_like(rank)
    for i in range(63 if FP64 else 31):
        wanted = found | (tl.full((), 0x4000000000000000 if FP64 else 0x40000000, tl.int64) >> i)
        enough = tl.sum((keys >= wanted).to(tl.int32), axis=0) >= rank
        found = tl.where(enough, wanted, found)
    return found


@kernel
def _sample(segment_rows: tl.int64, state: tl.int64, INPUT: tl.constexpr, MEMBERS: tl.constexpr, MODELS: tl.constexpr,
            OUTPUTS: tl.constexpr, BASE: tl.constexpr, FP64: tl.constexpr, TO_ZERO: tl.constexpr,
            ALIGNED: tl.constexpr, COUNT: tl.constexpr):  # fmt: skip
    segment, k = tl.program_id(0).to(tl.int64), member(tl.program_id(1), MEMBERS)
    row = pointer(segment_rows, tl.int64) + segment * (7 + MODELS + OUTPUTS)
    at, status = _load_state(state, tl.load(row + 3), k, MODELS)
    count, total = tl.load(row), tl.load(row + 5)
    if (status == SEARCHING) & (tl.load(row + 1) == 0) & (total > SMALL) & (count >= SAMPLED):
        # One element of each of as many equal stretches, at a place that varies: rows of a matrix are alike.
        i = tl.arange(0, SAMPLED)
        stretch = count // SAMPLED
        within = (i.to(tl.int64) * 0x9E3779B1) % 0x100000000 * tl.minimum(stretch, 0x7FFFFFFF) >> 32
        offset = i * stretch + within
        keys, _top = _keys(tl.load(row + 7 + k), tl.load(row + 6), 0, offset, count, at, k, INPUT, BASE, MODELS, FP64,
                           TO_ZERO, False, False, True)  # fmt: skip
        rank = tl.load(at) * SAMPLED // total
        error = tl.sqrt_rn((rank * (SAMPLED - rank)).to(tl.float32) * (1.0 / SAMPLED))
        margin = 4 + (4 * error).to(tl.int64)
        if rank > margin:
            tl.store(at + 2, _sampled_key(keys, rank - margin, FP64))
        if rank + margin <= SAMPLED:
            tl.store(at + 1, _sampled_key(keys, rank + margin, FP64))


def sample(launch, state):
    """Shrinks the interval by a sample to one that very likely holds the key; a sweep tells if it does not."""
    for code, members in models_by_dtype(launch):
        run(_sample, (launch.segments, len(members)), launch.segment_rows, state, INPUT=code, MEMBERS=members,
            MODELS=launch.models, OUTPUTS=launch.outputs, warps=8, **shared(launch, 0))  # fmt: skip


@device
def _sweep_pass(source, base_source, begin, length, low, high, shift, bins, counters, k, INPUT: tl.constexpr,
                BASE: tl.constexpr, MODELS: tl.constexpr, FP64: tl.constexpr, TO_ZERO: tl.constexpr,
                ALIGNED: tl.constexpr, COUNT: tl.constexpr, STEP: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    """Counts the keys of a chunk; returns the largest before settling."""
    histogram = tl.zeros((BINS,), tl.int32)
    above = tl.zeros((STEP,), tl.int32)
    tops = tl.zeros((STEP,), tl.int64 if FP64 else tl.int32)
    start = 0
    while start < (length if MASKED else CHUNK):
        offset = start + tl.arange(0, STEP)
        key, top = _keys(source, base_source, begin, offset, length, counters, k, INPUT, BASE, MODELS, FP64, TO_ZERO,
                         ALIGNED, COUNT, MASKED)  # fmt: skip
        tops = tl.maximum(tops, top)
        above += (key > high).to(tl.int32)
        inside = (key >= low) & (key <= high)
        if tl.max(inside.to(tl.int32), axis=0) > 0:
            histogram += tl.histogram(((key - low) >> shift).to(tl.int32), BINS, mask=inside)
        start += STEP
    tl.atomic_add(bins + tl.arange(0, BINS), histogram.to(tl.int64), mask=histogram > 0, sem="relaxed")
    tl.atomic_add(bins + ABOVE, tl.sum(above, axis=0).to(tl.int64), sem="relaxed")
    return tl.max(tops, axis=0)


@kernel
def _sweep(segment_rows: tl.int64, chunk_map: tl.int64, state: tl.int64, bins: tl.int64, nonfinite: tl.int64,
           INPUT: tl.constexpr, MEMBERS: tl.constexpr, MODELS: tl.constexpr, OUTPUTS: tl.constexpr, BASE: tl.constexpr,
           FP64: tl.constexpr, TO_ZERO: tl.constexpr, ALIGNED: tl.constexpr, COUNT: tl.constexpr,
           STEP: tl.constexpr):  # fmt: skip
    infinity: tl.constexpr = INFINITY64 if FP64 else INFINITY32
    integer: tl.constexpr = tl.int64 if FP64 else tl.int32
    k = member(tl.program_id(0) % len(MEMBERS), MEMBERS)
    chunk = tl.program_id(0) // len(MEMBERS)
    _segment, row, begin, length = segment_of(chunk, segment_rows, chunk_map, 7 + MODELS + OUTPUTS)
    tensor = tl.load(row + 3)
    at, status = _load_state(state, tensor, k, MODELS)
    base_source, source = tl.load(row + 6), tl.load(row + 7 + k)
    counters = counters_of(nonfinite, tensor, MODELS)
    whole = length == CHUNK
    largest = tl.full((), infinity, integer)
    if status == SEARCHING:
        low, high = tl.load(at + 1), tl.load(at + 2)
        shift = _shift(low, high)
        low, high, shift = low.to(integer), high.to(integer), shift.to(integer)
        counts = pointer(bins, tl.int64) + (tensor * MODELS + k) * BIN_ROW
        if whole:
            largest = _sweep_pass(source, base_source, begin, length, low, high, shift, counts, counters, k, INPUT,
                                  BASE, MODELS, FP64, TO_ZERO, ALIGNED, False, STEP, False)  # fmt: skip
        else:
            _sweep_pass(source, base_source, begin, length, low, high, shift, counts, counters, k, INPUT, BASE, MODELS,
                        FP64, TO_ZERO, ALIGNED, False, STEP // SLOWER, True)  # fmt: skip
    if COUNT:  # noqa: SIM102
        if largest >= infinity:
            start = 0
            while start < length:
                load_delta(source, base_source, begin, start + tl.arange(0, STEP // SLOWER), length, counters, k,
                           INPUT, BASE, MODELS, FP64, TO_ZERO, ALIGNED, True, True)  # fmt: skip
                start += STEP // SLOWER


def sweep(launch, state, bins, nonfinite):
    """Counts every key of the models that are being searched."""
    warps = 8
    for code, members in models_by_dtype(launch):
        run(_sweep, (launch.chunks * len(members),), launch.segment_rows, launch.chunk_map, state, bins, nonfinite,
            INPUT=code, MEMBERS=members, MODELS=launch.models, OUTPUTS=launch.outputs, STEP=step(launch, 4, warps),
            warps=warps, **shared(launch, nonfinite))  # fmt: skip


@kernel
def _shrink(state: tl.int64, bins: tl.int64, FP64: tl.constexpr, KEEP_ALL: tl.constexpr):
    pair = tl.program_id(0).to(tl.int64)
    at = pointer(state, tl.int64) + pair * STATE_ROW
    counts = pointer(bins, tl.int64) + pair * BIN_ROW
    if tl.load(at + 6) == SEARCHING:
        target, low, high = tl.load(at), tl.load(at + 1), tl.load(at + 2)
        bin = tl.arange(0, BINS)
        count = tl.load(counts + bin)
        above = tl.load(counts + ABOVE)
        total = tl.sum(count, axis=0)
        from_here = total - tl.cumsum(count, axis=0) + count  # keys in this bin and the higher ones
        rank = target - above
        inside = total
        if rank <= 0:
            low = high + 1
            high = tl.full((), 0x7FFFFFFFFFFFFFFF if FP64 else 0x7FFFFFFF, tl.int64)
            above, inside = above * 0, above * 0 - 1
        elif rank > total:
            above = above + total
            high = low - 1
            low, inside = low * 0, low * 0 - 1
        else:
            found = tl.sum((from_here >= rank).to(tl.int32), axis=0) - 1
            shift = _shift(low, high)
            low = low + (found.to(tl.int64) << shift)
            high = low + tl.minimum(high - low, (tl.full((), 1, tl.int64) << shift) - 1)
            inside = tl.sum(tl.where(bin == found, count, 0), axis=0)
            above = above + tl.sum(tl.where(bin > found, count, 0), axis=0)
            if low == high:
                whole = (low == 0) | (inside <= target - above)
                tl.store(at + 6, tl.where(whole, DONE, LOCATING) if not KEEP_ALL else whole * 0 + DONE)
        tl.store(at + 1, low)
        tl.store(at + 2, high)
        tl.store(at + 3, above)
        tl.store(at + 4, inside)
        tl.store(counts + bin, tl.zeros((BINS,), tl.int64))
        tl.store(counts + ABOVE, above * 0)


def shrink_interval(state, bins, pairs, fp64, keep_all_ties):
    """From the counts of a sweep: the key, or the next interval."""
    run(_shrink, (pairs,), state, bins, FP64=bool(fp64), KEEP_ALL=bool(keep_all_ties), warps=4)


@kernel
def _ties(segment_rows: tl.int64, chunk_map: tl.int64, state: tl.int64, tie_counts: tl.int64, INPUT: tl.constexpr,
          MEMBERS: tl.constexpr, MODELS: tl.constexpr, OUTPUTS: tl.constexpr, BASE: tl.constexpr, FP64: tl.constexpr,
          TO_ZERO: tl.constexpr, ALIGNED: tl.constexpr, COUNT: tl.constexpr):  # fmt: skip
    k = member(tl.program_id(0) % len(MEMBERS), MEMBERS)
    chunk = tl.program_id(0) // len(MEMBERS)
    _segment, row, begin, length = segment_of(chunk, segment_rows, chunk_map, 7 + MODELS + OUTPUTS)
    at, status = _load_state(state, tl.load(row + 3), k, MODELS)
    if status == LOCATING:
        threshold = tl.load(at + 1)
        base_source, source = tl.load(row + 6), tl.load(row + 7 + k)
        ties = tl.zeros((BLOCKS * LANES,), tl.int32)
        for r in range(ROWS):
            key, _top = _keys(source, base_source, begin, lane_offsets(0, r, BLOCKS), length, at, k, INPUT, BASE,
                              MODELS, FP64, TO_ZERO, ALIGNED, False, True)  # fmt: skip
            ties += (key == threshold).to(tl.int32)
        block = tl.arange(0, BLOCKS)
        first_block = tl.load(row + 4) + begin // BLOCK
        to = pointer(tie_counts, tl.int32) + (first_block + block) * MODELS + k
        tl.store(to, sum_counts(ties, BLOCKS), mask=block * BLOCK < length)


def ties(launch, state, tie_counts):
    """How many keys of each block of 4096 are the one found."""
    for code, members in models_by_dtype(launch):
        run(_ties, (launch.chunks * len(members),), launch.segment_rows, launch.chunk_map, state, tie_counts,
            INPUT=code, MEMBERS=members, MODELS=launch.models, OUTPUTS=launch.outputs, warps=4,
            **shared(launch, 0))  # fmt: skip


@kernel
def _locate(state: tl.int64, tie_counts: tl.int64, ranges: tl.int64, MODELS: tl.constexpr):
    tensor, k = tl.program_id(0).to(tl.int64), tl.program_id(1)
    at, status = _load_state(state, tensor, k, MODELS)
    if status == LOCATING:
        wanted = tl.load(at) - tl.load(at + 3)
        first, rows = (
            tl.load(pointer(ranges, tl.int64) + 2 * tensor),
            tl.load(pointer(ranges, tl.int64) + 2 * tensor + 1),
        )
        counts = pointer(tie_counts, tl.int32) + first * MODELS + k
        start, before, here = first * 0, first * 0, first * 0
        # Whole runs of blocks that hold too few ties are passed over.
        while (start < rows) & (before + here < wanted):
            before += here
            i = start + tl.arange(0, STEP_OF_BLOCKS)
            here = tl.sum(tl.load(counts + i * MODELS, mask=i < rows, other=0).to(tl.int64), axis=0)
            start += STEP_OF_BLOCKS
        i = start - STEP_OF_BLOCKS + tl.arange(0, STEP_OF_BLOCKS)
        count = tl.load(counts + i * MODELS, mask=i < rows, other=0).to(tl.int64)
        short = before + tl.cumsum(count, axis=0) < wanted
        block = start - STEP_OF_BLOCKS + tl.sum(short.to(tl.int64), axis=0)
        rank = wanted - before - tl.sum(tl.where(short, count, 0), axis=0)
        tl.store(at + 7, (block << RANK_BITS) + rank)


def locate(state, tie_counts, ranges, tensors, models):
    """The block with the last tie that completes the count, and the tie's rank within."""
    run(_locate, (tensors, models), state, tie_counts, ranges, MODELS=models, warps=4)


@kernel
def _position(segment_rows: tl.int64, state: tl.int64, INPUT: tl.constexpr, MEMBERS: tl.constexpr, MODELS: tl.constexpr,
              OUTPUTS: tl.constexpr, BASE: tl.constexpr, FP64: tl.constexpr, TO_ZERO: tl.constexpr,
              ALIGNED: tl.constexpr, COUNT: tl.constexpr):  # fmt: skip
    segment, k = tl.program_id(0).to(tl.int64), member(tl.program_id(1), MEMBERS)
    row = pointer(segment_rows, tl.int64) + segment * (7 + MODELS + OUTPUTS)
    at, status = _load_state(state, tl.load(row + 3), k, MODELS)
    if status == LOCATING:
        found = tl.load(at + 7)
        count, first = tl.load(row), tl.load(row + 1)
        begin = (found >> RANK_BITS) * BLOCK - first
        if (begin >= 0) & (begin < count):
            length = tl.minimum(count - begin, BLOCK).to(tl.int32)
            key, _top = _keys(tl.load(row + 7 + k), tl.load(row + 6), begin, tl.arange(0, BLOCK), length, at, k, INPUT,
                              BASE, MODELS, FP64, TO_ZERO, ALIGNED, False, True)  # fmt: skip
            tie = (key == tl.load(at + 1)).to(tl.int32)
            rank = (found % (tl.full((), 1, tl.int64) << RANK_BITS)).to(tl.int32)
            before = tl.sum((tl.cumsum(tie, axis=0) < rank).to(tl.int32), axis=0)
            tl.store(at + 5, first + begin + before + 1)


def position(launch, state):
    """Where that tie is, in the segment that has it."""
    for code, members in models_by_dtype(launch):
        run(_position, (launch.segments, len(members)), launch.segment_rows, state, INPUT=code, MEMBERS=members,
            MODELS=launch.models, OUTPUTS=launch.outputs, warps=8, **shared(launch, 0))  # fmt: skip
