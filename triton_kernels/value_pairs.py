"""Terms of two values that are read once: a value pair is values a and b, and the numbers of the sums of aa, ab and bb.

A number of -1 stands for a product that is not asked for.
"""

import triton.language as tl

from .elements import device, pointer


@device
def load_value_pair(value_pairs, number):
    """Two values, and the numbers of the sums of their three products."""
    at = pointer(value_pairs, tl.int64) + number * 5
    return tl.load(at), tl.load(at + 1), tl.load(at + 2), tl.load(at + 3), tl.load(at + 4)


@device
def add_product(total, x, y, FP64: tl.constexpr):
    # A product of two float32 is exact in float64: its sum is rounded once, fused or not.
    return total + x * y if FP64 else tl.fma(x, y, total)


@device
def add_products(sums, x, y, pair, FP64: tl.constexpr):
    """The three sums with the products of `x` and `y` that are asked for."""
    aa, ab, bb = sums
    _a, _b, sum_aa, sum_ab, sum_bb = pair
    if sum_aa >= 0:
        aa = add_product(aa, x, x, FP64)
    if sum_ab >= 0:
        ab = add_product(ab, x, y, FP64)
    if sum_bb >= 0:
        bb = add_product(bb, y, y, FP64)
    return aa, ab, bb
