"""Terms of two values that are read once: a duo is values a and b, and the places of the sums of aa, ab and bb.

A place of -1 stands for a product that is not asked for.
"""

import triton.language as tl

from .elements import device, pointer


@device
def load_duo(duos, number):
    """Two values, and the places of their three products."""
    at = pointer(duos, tl.int64) + number * 5
    return tl.load(at), tl.load(at + 1), tl.load(at + 2), tl.load(at + 3), tl.load(at + 4)


@device
def add_product(total, x, y, WIDE: tl.constexpr):
    # A product of two float32 is exact in float64: its sum is rounded once, fused or not.
    return total + x * y if WIDE else tl.fma(x, y, total)


@device
def add_products(sums, x, y, duo, WIDE: tl.constexpr):
    """The three sums with the products of `x` and `y` that are asked for."""
    aa, ab, bb = sums
    _a, _b, place_aa, place_ab, place_bb = duo
    if place_aa >= 0:
        aa = add_product(aa, x, x, WIDE)
    if place_ab >= 0:
        ab = add_product(ab, x, y, WIDE)
    if place_bb >= 0:
        bb = add_product(bb, y, y, WIDE)
    return aa, ab, bb
