"""gram over chunks, in float64: csrc/ops/gram.h, as csrc/cpu/gram.inl has it."""

import triton.language as tl

from .deltas import load_addresses, load_deltas
from .elements import BLOCK, BLOCKS, CHUNK, INFINITY32, INFINITY64, LANES, ROWS, device, pointer, segment_of
from .geometry import kernel, run, shared
from .sums import lane_offsets, sum_lanes


@device
def _pass(sources, base_source, begin, length, counters, partials, INPUTS: tl.constexpr, FIRST: tl.constexpr,
          LAST: tl.constexpr, SIZE: tl.constexpr, BASE: tl.constexpr, WIDE: tl.constexpr, ALIGNED: tl.constexpr,
          COUNT: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    """Writes the partials of the chunk's blocks, from those of norm FIRST on; returns the largest magnitude key."""
    models: tl.constexpr = len(INPUTS)
    zeros = tl.zeros((BLOCKS * LANES,), tl.float64)
    tops = tl.zeros((BLOCKS * LANES,), tl.int64 if WIDE else tl.int32)
    norms, distances = (), ()
    for i in tl.static_range(FIRST, LAST):
        norms = norms + (zeros,)  # noqa: RUF005
        for _k in tl.static_range(i + 1, models):
            distances = distances + (zeros,)  # noqa: RUF005
    for row in range(ROWS):
        d, _base, top = load_deltas(sources, base_source, begin, lane_offsets(0, row, BLOCKS), length, counters, INPUTS, BASE, WIDE,
                                True, ALIGNED, COUNT, MASKED)  # fmt: skip
        tops = tl.maximum(tops, top)
        next_norms, next_distances = (), ()
        for i in tl.static_range(FIRST, LAST):
            x = d[i].to(tl.float64)
            next_norms = next_norms + (norms[len(next_norms)] + x * x,)  # noqa: RUF005
            for k in tl.static_range(i + 1, models):
                v = x - d[k].to(tl.float64)
                next_distances = next_distances + (distances[len(next_distances)] + v * v,)  # noqa: RUF005
        norms, distances = next_norms, next_distances
    block = tl.arange(0, BLOCKS)
    at = partials + block.to(tl.int64) * SIZE
    exists = block * BLOCK < length
    for i in tl.static_range(len(norms)):
        tl.store(at + FIRST + i, sum_lanes(norms[i]), mask=exists)
    # Before distance (FIRST, FIRST + 1) come the norms and the distances of lower rows.
    skipped: tl.constexpr = models + FIRST * (2 * models - FIRST - 1) // 2
    for i in tl.static_range(len(distances)):
        tl.store(at + skipped + i, sum_lanes(distances[i]), mask=exists)
    return tl.max(tops, axis=0)


@kernel
def _kernel(places: tl.int64, chunk_map: tl.int64, partials: tl.int64, nonfinite: tl.int64, INPUTS: tl.constexpr,
            FIRST: tl.constexpr, LAST: tl.constexpr, OUTPUTS: tl.constexpr, BASE: tl.constexpr, WIDE: tl.constexpr,
            ALIGNED: tl.constexpr, COUNT: tl.constexpr):  # fmt: skip
    models: tl.constexpr = len(INPUTS)
    size: tl.constexpr = models * (models + 1) // 2
    infinity: tl.constexpr = INFINITY64 if WIDE else INFINITY32
    _segment, row, begin, length = segment_of(tl.program_id(0), places, chunk_map, 7 + models + OUTPUTS)
    base_source = tl.load(row + 6)
    sources = load_addresses(row, 7, models)
    counters = pointer(nonfinite, tl.int64) + tl.load(row + 3) * (models + 1)
    at = pointer(partials, tl.float64) + (tl.load(row + 4) + begin // BLOCK) * size
    largest = tl.full((), infinity, tl.int64 if WIDE else tl.int32)
    if length == CHUNK:
        largest = _pass(sources, base_source, begin, length, counters, at, INPUTS, FIRST, LAST, size, BASE, WIDE,
                        ALIGNED, COUNT, False)  # fmt: skip
    if largest >= infinity:
        _pass(sources, base_source, begin, length, counters, at, INPUTS, FIRST, LAST, size, BASE, WIDE, ALIGNED,
              COUNT, True)  # fmt: skip


def row_groups(models, most=8):
    """Rows [first, last) of the triangle of sums, for programs that keep at most `most` sums unless one row has more."""
    groups, first = [], 0
    while first < models:
        last, sums = first + 1, models - first
        while last < models and sums + models - last <= most:
            sums += models - last
            last += 1
        groups.append((first, last, sums))
        first = last
    return groups


def launch(launch, partials, nonfinite):
    for first, last, sums in row_groups(launch.models):
        constants = shared(launch, 0 if first else nonfinite)
        del constants["TO_ZERO"]  # sums are taken over the finite elements
        warps = 4 if sums <= 3 else 8 if sums <= 6 else 16
        run(_kernel, (launch.chunks,), launch.places, launch.chunk_map, partials, nonfinite, INPUTS=tuple(launch.inputs),
            FIRST=first, LAST=last, OUTPUTS=launch.outputs, warps=warps,
            registers=128 if warps == 8 and not launch.wide else None, **constants)  # fmt: skip
