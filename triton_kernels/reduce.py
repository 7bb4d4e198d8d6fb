"""The sums of blocks, pairwise in float64: csrc/ops/reduce.h. Extremes are taken over the same rows."""

import triton.language as tl

from .elements import device, pointer
from .geometry import kernel, run
from .sums import sum_pairs

RUN_LEVELS = tl.constexpr(11)
RUN = tl.constexpr(2048)


@device
def _reduce_run(at, stride, count, kind):
    """Of up to RUN rows. A missing partner counts as +0, which changes nothing: partials are never -0."""
    i = tl.arange(0, RUN)
    x = tl.load(at + i.to(tl.int64) * stride, mask=i < count, other=0.0)
    if kind == 3:
        total = tl.min(tl.where(i < count, x, float("inf")), axis=0)
    elif kind == 4:
        total = tl.max(tl.where(i < count, x, float("-inf")), axis=0)
    else:
        total = tl.sum(sum_pairs(x, RUN_LEVELS), axis=0)
    return total


@kernel
def _kernel(partials: tl.int64, ranges: tl.int64, width: tl.int64, result: tl.int64, MOMENTS: tl.constexpr):
    slot, column = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    width = width.to(tl.int64)
    kind = column % 7 if MOMENTS else column * 0
    first, count = tl.load(pointer(ranges, tl.int64) + 2 * slot), tl.load(pointer(ranges, tl.int64) + 2 * slot + 1)
    rows = pointer(partials, tl.float64) + first * width + column
    while count > RUN:
        runs = (count + RUN - 1) // RUN
        r = tl.full((), 0, tl.int64)
        while r < runs:
            tl.store(rows + r * width, _reduce_run(rows + r * RUN * width, width, count - r * RUN, kind))
            r += 1
        tl.debug_barrier()  # the next pass reads what other threads have written
        count = runs
    total = _reduce_run(rows, width, count, kind)
    tl.store(pointer(result, tl.float64) + slot * width + column, tl.where(count > 0, total, 0.0))


def launch(partials, ranges, slots, width, moments, result):
    run(_kernel, (slots, width), partials, ranges, width, result, MOMENTS=bool(moments), warps=8)
