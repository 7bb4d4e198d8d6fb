"""gram over chunks: squared norms and mutual squared distances of the inputs, in float64 (csrc/ops/gram.h).

Distances are sums of squared differences, never differences of dot products: these cancel for models that are alike. A
program adds up a chunk's blocks for all pairs of its models. The sums of all pairs need many registers, so with many
models a launch takes some rows of the triangle of pairs at a time, and reads the inputs again for the next rows.
"""

import triton.language as tl

from .deltas import load_addresses, load_deltas
from .elements import (
    BLOCK,
    BLOCKS,
    CHUNK,
    INFINITY32,
    INFINITY64,
    LANES,
    ROWS,
    counters_of,
    device,
    pointer,
    segment_of,
)
from .geometry import kernel, run, shared
from .sums import lane_offsets, sum_lanes


@device
def _pass(sources, base_source, begin, length, counters, norms_at, distances_at, INPUTS: tl.constexpr,
          TAKEN: tl.constexpr, SIZE: tl.constexpr, BASE: tl.constexpr, FP64: tl.constexpr, ALIGNED: tl.constexpr,
          COUNT: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    """Writes the partials of the chunk's blocks; returns the largest magnitude key."""
    models: tl.constexpr = len(INPUTS)
    zeros = tl.zeros((BLOCKS * LANES,), tl.float64)
    tops = tl.zeros((BLOCKS * LANES,), tl.int64 if FP64 else tl.int32)
    norms, distances = (), ()
    for i in tl.static_range(TAKEN):
        norms = norms + (zeros,)  # noqa: RUF005
        for _k in tl.static_range(i + 1, models):
            distances = distances + (zeros,)  # noqa: RUF005
    for row in range(ROWS):
        offset = lane_offsets(0, row, BLOCKS)
        d, _base, top, _sound = load_deltas(sources, base_source, begin, offset, length, counters, INPUTS, BASE, FP64,
                                              True, ALIGNED, COUNT, MASKED)  # fmt: skip
        tops = tl.maximum(tops, top)
        next_norms, next_distances = (), ()
        for i in tl.static_range(TAKEN):
            x = d[i].to(tl.float64)
            next_norms = next_norms + (norms[i] + x * x,)  # noqa: RUF005
            for k in tl.static_range(i + 1, models):
                v = x - d[k].to(tl.float64)
                next_distances = next_distances + (distances[len(next_distances)] + v * v,)  # noqa: RUF005
        norms, distances = next_norms, next_distances
    block = tl.arange(0, BLOCKS)
    exists = block * BLOCK < length
    for i in tl.static_range(len(norms)):
        tl.store(norms_at + block * SIZE + i, sum_lanes(norms[i]), mask=exists)
    for i in tl.static_range(len(distances)):
        tl.store(distances_at + block * SIZE + i, sum_lanes(distances[i]), mask=exists)
    return tl.max(tops, axis=0)


@kernel
def _kernel(segment_rows: tl.int64, chunk_map: tl.int64, partials: tl.int64, nonfinite: tl.int64, INPUTS: tl.constexpr,
            SKIPPED: tl.constexpr, TAKEN: tl.constexpr, OUTPUTS: tl.constexpr, BASE: tl.constexpr, FP64: tl.constexpr,
            ALIGNED: tl.constexpr, COUNT: tl.constexpr):  # fmt: skip
    """TAKEN rows of the triangle of sums after SKIPPED ones; INPUTS: of the models that these rows are about."""
    models: tl.constexpr = SKIPPED + len(INPUTS)
    size: tl.constexpr = models * (models + 1) // 2
    infinity: tl.constexpr = INFINITY64 if FP64 else INFINITY32
    _segment, row, begin, length = segment_of(tl.program_id(0), segment_rows, chunk_map, 7 + models + OUTPUTS)
    base_source = tl.load(row + 6)
    sources = load_addresses(row, 7 + SKIPPED, len(INPUTS))
    counters = counters_of(nonfinite, tl.load(row + 3), models)
    norms_at = pointer(partials, tl.float64) + (tl.load(row + 4) + begin // BLOCK) * size + SKIPPED
    # Between them lie the other norms and the distances of the rows skipped.
    distances_at = norms_at + len(INPUTS) + SKIPPED * (2 * models - SKIPPED - 1) // 2
    largest = tl.full((), infinity, tl.int64 if FP64 else tl.int32)
    if length == CHUNK:
        largest = _pass(sources, base_source, begin, length, counters, norms_at, distances_at, INPUTS, TAKEN, size,
                        BASE, FP64, ALIGNED, COUNT, False)  # fmt: skip
    if largest >= infinity:
        _pass(sources, base_source, begin, length, counters, norms_at, distances_at, INPUTS, TAKEN, size, BASE, FP64,
              ALIGNED, COUNT, True)  # fmt: skip


def row_ranges(models, most=6):
    """(first row, rows, sums) of ranges of the triangle's rows with at most `most` sums, unless one row has more."""
    ranges, first = [], 0
    while first < models:
        rows, sums = 1, models - first
        while first + rows < models and sums + models - first - rows <= most:
            sums += models - first - rows
            rows += 1
        ranges.append((first, rows, sums))
        first += rows
    return ranges


def launch(launch, partials, nonfinite):
    for first, rows, sums in row_ranges(launch.models):
        constants = shared(launch, 0 if first else nonfinite)
        del constants["TO_ZERO"]  # sums are taken over the finite elements
        inputs = tuple(launch.inputs[first:])
        warps = 4 if sums <= 3 else 8 if sums + len(inputs) <= 9 else 16  # that is 8, 4 or 2 lanes of each sum a thread
        run(_kernel, (launch.chunks,), launch.segment_rows, launch.chunk_map, partials, nonfinite, INPUTS=inputs,
            SKIPPED=first, TAKEN=rows, OUTPUTS=launch.outputs, warps=warps,
            registers=128 if warps == 8 and not launch.fp64 else None, **constants)  # fmt: skip
