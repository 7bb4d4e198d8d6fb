"""Kernels that only draw: Philox4x32-10 numbers compared with a limit and counted, so that no memory is waited for.

One call makes 128 bits: eight numbers of 16 bits, as a random drop uses them, or four of 32.
"""

import triton
import triton.language as tl

CALLS = 1024  # of one step of a program
STEPS = 16


@triton.jit
def count_below(key, cut, counts, BITS: tl.constexpr, CALLS: tl.constexpr, STEPS: tl.constexpr):
    """Stores how many of the numbers of CALLS * STEPS calls are below `cut` (of 65536; scaled for 32 bits)."""
    program = tl.program_id(0)
    limit = cut.to(tl.uint32)
    total = tl.zeros((CALLS,), tl.int32)
    for step in range(STEPS):
        call = (program * STEPS + step) * CALLS + tl.arange(0, CALLS)
        zero = call * 0
        a, b, c, d = tl.philox(key, call, zero, zero, zero)
        if BITS == 16:
            total += ((a & 0xFFFF) < limit).to(tl.int32) + ((a >> 16) < limit).to(tl.int32)
            total += ((b & 0xFFFF) < limit).to(tl.int32) + ((b >> 16) < limit).to(tl.int32)
            total += ((c & 0xFFFF) < limit).to(tl.int32) + ((c >> 16) < limit).to(tl.int32)
            total += ((d & 0xFFFF) < limit).to(tl.int32) + ((d >> 16) < limit).to(tl.int32)
        else:
            scaled = limit << 16
            total += (a < scaled).to(tl.int32) + (b < scaled).to(tl.int32)
            total += (c < scaled).to(tl.int32) + (d < scaled).to(tl.int32)
    tl.store(counts + program, tl.sum(total, axis=0))
