"""The last step of sums: the partial sums of blocks are added pairwise, in float64 (csrc/ops/reduce.h).

The kernels that measure write one partial sum per block of 4096 elements. Here one program per tensor and sum adds
neighbours, level by level, in place. The tree depends on the number of blocks only, so the result has the same bits as
on a CPU.
"""

import triton.language as tl

from .elements import pointer
from .geometry import kernel, run

RUN = tl.constexpr(1024)


@kernel
def _kernel(partials: tl.int64, ranges: tl.int64, width: tl.int64, result: tl.int64):
    tensor, column = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    width = width.to(tl.int64)
    first, count = tl.load(pointer(ranges, tl.int64) + 2 * tensor), tl.load(pointer(ranges, tl.int64) + 2 * tensor + 1)
    rows = pointer(partials, tl.float64) + first * width + column
    total = tl.load(rows, mask=count > 0, other=0.0)
    while count > 1:
        half = (count + 1) // 2
        start = tl.full((), 0, tl.int64)
        while start < half:
            i = start + tl.arange(0, RUN)
            paired = 2 * i + 1 < count
            a = tl.load(rows + 2 * i * width, mask=i < half, other=0.0)
            b = tl.load(rows + (2 * i + 1) * width, mask=paired, other=0.0)
            # A missing partner counts as +0, which changes nothing: partials are never -0.
            x = a + b
            tl.debug_barrier()  # every thread has read before one of them writes
            tl.store(rows + i * width, x, mask=i < half)
            start += RUN
        tl.debug_barrier()
        count = half
        total = tl.load(rows)
    tl.store(pointer(result, tl.float64) + tensor * width + column, total)


def launch(partials, ranges, tensors, width, result):
    run(_kernel, (tensors, width), partials, ranges, width, result, warps=8)
