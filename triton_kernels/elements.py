"""Elements on the device: widening, rounding, keys and settling, as in csrc/ops/common.h and csrc/ops/convert.h.

`CODE` is a dtype code of csrc/ops/common.h, `FP64` says that the compute type is float64. Bits and keys are signed
integers of the compute type's width; keys are never negative.
"""

import triton
import triton.language as tl
from triton import knobs

INTERPRETED = knobs.runtime.interpret

F32, F16, BF16, F64 = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)
STORED = tl.constexpr((tl.uint32, tl.uint16, tl.uint16, tl.uint64))
NO_BASE = tl.constexpr(-1)
CHUNK = tl.constexpr(16384)
BLOCK = tl.constexpr(4096)
LANES = tl.constexpr(256)
ROWS = tl.constexpr(16)
BLOCKS = tl.constexpr(4)  # of one chunk
FEW = tl.constexpr(16)  # constants of a formula that stay in registers; more are loaded anew in each step
# The second, masked way over a chunk takes smaller steps: it shall not need more registers than the first.
SLOWER = tl.constexpr(1 if INTERPRETED else 4)
INFINITY32, INFINITY64 = tl.constexpr(0x7F800000), tl.constexpr(0x7FF0000000000000)
# By the code of the output: overflow_key of csrc/ops/convert.h.
OVERFLOW32 = tl.constexpr((0x7F800000, 0x477FF000, 0x7F7F8000, 0x7F800000))
OVERFLOW64 = tl.constexpr((0x47EFFFFFF0000000, 0x40EFFE0000000000, 0x47EFF00000000000, 0x7FF0000000000000))


def device(function):
    """A function for kernels to call. The interpreter patches the whole language at each call of a jitted one."""
    return function if INTERPRETED else triton.jit(function)


@device
def pointer(address, TYPE: tl.constexpr, ALIGNED: tl.constexpr = False):
    # The interpreter types a plain number by its value: the sum makes it 64 bits wide in every case.
    at = (address + tl.full((), 0, tl.int64)).to(tl.pointer_type(TYPE))
    if ALIGNED:
        at = tl.multiple_of(at, 16)
    return at


@device
def segment_of(chunk, segment_rows, chunk_map, COLUMNS: tl.constexpr):
    """Number and table row of a chunk's segment, where in the segment the chunk begins, how much of it there is."""
    segment = tl.load(pointer(chunk_map, tl.int32) + chunk).to(tl.int64)
    row = pointer(segment_rows, tl.int64) + segment * COLUMNS
    begin = (chunk - tl.load(row + 2)) * CHUNK
    length = tl.minimum(tl.load(row) - begin, CHUNK).to(tl.int32)
    return segment, row, begin, length


@device
def counters_of(nonfinite, tensor, MODELS: tl.constexpr):
    """Of a tensor: a counter for each input, then for the base, then for the results."""
    return pointer(nonfinite, tl.int64) + tensor * (MODELS + 2)


@device
def member(i, MEMBERS: tl.constexpr):
    """MEMBERS[i] for an i known at run time."""
    k = i
    for j in tl.static_range(len(MEMBERS)):
        if MEMBERS[j] != j:
            k = tl.where(i == j, MEMBERS[j], k)
    return k


@device
def bits_of(x, FP64: tl.constexpr):
    return x.to(tl.int64 if FP64 else tl.int32, bitcast=True)


@device
def magnitude_key(x, FP64: tl.constexpr):
    return bits_of(x, FP64) & (0x7FFFFFFFFFFFFFFF if FP64 else 0x7FFFFFFF)


@device
def magnitude(x, FP64: tl.constexpr):
    return magnitude_key(x, FP64).to(x.dtype, bitcast=True)


@device
def is_finite(x, FP64: tl.constexpr):
    return magnitude_key(x, FP64) < (INFINITY64 if FP64 else INFINITY32)


@device
def settle(delta, TO_ZERO: tl.constexpr, FP64: tl.constexpr):
    """What is not finite becomes 0, or NaN becomes the canonical one."""
    if TO_ZERO:
        return tl.where(is_finite(delta, FP64), delta, 0.0)
    else:
        nan = magnitude_key(delta, FP64) > (INFINITY64 if FP64 else INFINITY32)
        settled = tl.where(nan, 0x7FF8000000000000 if FP64 else 0x7FC00000, bits_of(delta, FP64))
        return settled.to(delta.dtype, bitcast=True)


@device
def load(address, begin, offset, length, CODE: tl.constexpr, FP64: tl.constexpr, ALIGNED: tl.constexpr,
         MASKED: tl.constexpr):  # fmt: skip
    """Elements begin + offset of the compute type; +0 from `length` on if masked."""
    # By integers: the interpreter's own conversions from and to bfloat16 are wrong.
    at = pointer(address, STORED[CODE], ALIGNED) + begin + offset
    stored = tl.load(at, mask=offset < length, other=0) if MASKED else tl.load(at)
    if CODE == BF16:
        x = (stored.to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    elif CODE == F16:
        x = stored.to(tl.float16, bitcast=True).to(tl.float32)
    elif CODE == F32:
        x = stored.to(tl.float32, bitcast=True)
    else:
        x = stored.to(tl.float64, bitcast=True)
    if FP64:
        x = x.to(tl.float64)
    return x


@device
def round_to_odd(x):
    """float64 to float32 such that a further rounding to at most 22 bits is the correct one."""
    nearest = x.to(tl.float32)
    back = nearest.to(tl.float64)
    bits = bits_of(nearest, False)
    too_large = magnitude_key(back, True) > magnitude_key(x, True)
    odd = (bits - too_large.to(tl.int32)) | 1
    return tl.where(back == x, bits, odd).to(tl.float32, bitcast=True)


@device
def round_to(x, CODE: tl.constexpr, FP64: tl.constexpr):
    """The stored bits of a result, every NaN the canonical one."""
    nan = x != x
    if CODE == F64:
        return tl.where(nan, 0x7FF8000000000000, x.to(tl.float64).to(tl.int64, bitcast=True))
    else:
        if FP64:
            x = x.to(tl.float32) if CODE == F32 else round_to_odd(x)
        bits = x.to(tl.uint32, bitcast=True)
        if CODE == F32:
            return tl.where(nan, 0x7FC00000, bits)
        elif CODE == BF16:
            return tl.where(nan, 0x7FC0, (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)
        else:
            return tl.where(nan, 0x7E00, x.to(tl.float16).to(tl.uint16, bitcast=True))


@device
def store(address, begin, offset, length, x, CODE: tl.constexpr, FP64: tl.constexpr, ALIGNED: tl.constexpr,
          MASKED: tl.constexpr):  # fmt: skip
    at = pointer(address, STORED[CODE], ALIGNED) + begin + offset
    stored = round_to(x, CODE, FP64).to(STORED[CODE])
    if MASKED:
        tl.store(at, stored, mask=offset < length)
    else:
        tl.store(at, stored)


@device
def add_delta(base, delta):
    """A delta of zero leaves the base's bits alone."""
    return tl.where(delta == 0, base, base + delta)


@device
def count_nonfinite(counter, x, FP64: tl.constexpr):
    """Adds how many of x are NaN or infinite."""
    found = tl.sum((magnitude_key(x, FP64) >= (INFINITY64 if FP64 else INFINITY32)).to(tl.int32), axis=0)
    tl.atomic_add(counter, found.to(tl.int64), sem="relaxed")
