"""Sums of products of two values, per row or per column: csrc/ops/products.h. One program per chunk and duo.

A duo is two values a and b that are read once, and the places of the sums of aa, ab and bb, -1 for one not asked for.
"""

import triton.language as tl

from .elements import F32, F64, INTERPRETED, device, load, pointer, segment_of
from .geometry import kernel, run
from .rows import GROUP, GROUP_LEVELS, ROOM, TILE, load_lanes, row_blocks, row_lanes, span_of
from .sums import sum_pairs

COLUMN_TILE = tl.constexpr(128)  # of tables.py
AT_ONCE = tl.constexpr(16 if INTERPRETED else 4)  # rows whose loads are under way together


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


@device
def _blocks(row, duo, columns, block, end, rows, at, sums, WIDE: tl.constexpr, WIDTH: tl.constexpr,
            LEVELS: tl.constexpr):  # fmt: skip
    """Writes the partials of the row blocks from `block` to `end`, several at once, WIDTH = 2^LEVELS lanes of each."""
    at_once: tl.constexpr = ROOM // WIDTH
    a, b, place_aa, place_ab, place_bb = duo
    length, first, second = tl.load(row), tl.load(row + 7 + a), tl.load(row + 7 + b)
    while block < end:
        start, size = row_lanes(row, block, end, columns, WIDTH)
        zeros = tl.zeros((ROOM,), tl.float64)
        aa, ab, bb = zeros, zeros, zeros
        r = 0
        while r < rows:
            x, _inside = load_lanes(first, start, size, r, length, WIDE, WIDTH)
            y, _inside = load_lanes(second, start, size, r, length, WIDE, WIDTH)
            aa, ab, bb = add_products((aa, ab, bb), x, y, duo, WIDE)
            r += 1
        own = block + tl.arange(0, at_once)
        for i in range(3):  # one after the other: a tree takes more registers than the sums
            place = tl.where(i == 0, place_aa, tl.where(i == 1, place_ab, place_bb))
            if place >= 0:
                total = tl.where(i == 0, aa, tl.where(i == 1, ab, bb))
                tl.store(at + own * sums + place, sum_pairs(total, LEVELS), mask=own < end)
        block += at_once


@kernel
def _rows(places: tl.int64, chunk_map: tl.int64, words: tl.int64, duos: tl.int64, number: tl.int64, sums: tl.int64,
          partials: tl.int64, MODELS: tl.constexpr, WIDE: tl.constexpr):  # fmt: skip
    segment, row, begin, length = segment_of(tl.program_id(0) // number, places, chunk_map, 7 + MODELS)
    duo = load_duo(duos, tl.program_id(0) % number)
    columns = tl.load(pointer(words, tl.int64) + segment)
    block, end, rows = row_blocks(row, begin, length, columns)
    at = pointer(partials, tl.float64) + tl.load(row + 4) * sums
    # Lanes that no row fills would add nothing but zeros.
    if columns <= 4:
        _blocks(row, duo, columns, block, end, rows, at, sums, WIDE, 4, 2)
    elif columns <= 32:
        _blocks(row, duo, columns, block, end, rows, at, sums, WIDE, 32, 5)
    else:
        _blocks(row, duo, columns, block, end, rows, at, sums, WIDE, 256, 8)


@device
def _begin(at, place, begun, exists):
    """Zeros, or what an earlier segment has left."""
    sums = tl.zeros((COLUMN_TILE,), tl.float64)
    if begun:
        sums = tl.load(at + place, mask=exists, other=0.0)
    return sums


@kernel
def _columns(places: tl.int64, chunk_map: tl.int64, words: tl.int64, duos: tl.int64, number: tl.int64, sums: tl.int64,
             partials: tl.int64, MODELS: tl.constexpr, WIDE: tl.constexpr):  # fmt: skip
    """A block of rows of COLUMN_TILE columns; one that began in an earlier segment is continued."""
    code: tl.constexpr = F64 if WIDE else F32
    program = tl.program_id(0) // number
    segment = tl.load(pointer(chunk_map, tl.int32) + program).to(tl.int64)
    row = pointer(places, tl.int64) + segment * (7 + MODELS)
    duo = load_duo(duos, tl.program_id(0) % number)
    a, b, place_aa, place_ab, place_bb = duo
    own_words = pointer(words, tl.int64) + segment * 2
    columns, each = tl.load(own_words), tl.load(own_words + 1)
    tiles, tile = (columns + COLUMN_TILE - 1) // COLUMN_TILE, program - tl.load(row + 2)
    column = tile % tiles * COLUMN_TILE + tl.arange(0, COLUMN_TILE)
    exists = column < columns
    count, first = tl.load(row), tl.load(row + 1) // columns
    block = first // each + tile // tiles
    r = tl.maximum(block * each, first) - first
    end = tl.minimum((block + 1) * each - first, count // columns)
    at = pointer(partials, tl.float64) + tl.load(row + 4) + block * sums * columns + column
    begun = first + r > block * each
    aa = _begin(at, place_aa * columns, begun & (place_aa >= 0), exists)
    ab = _begin(at, place_ab * columns, begun & (place_ab >= 0), exists)
    bb = _begin(at, place_bb * columns, begun & (place_bb >= 0), exists)
    source_a, source_b = tl.load(row + 7 + a), tl.load(row + 7 + b)
    while r < end:
        x, y = (), ()
        for i in tl.static_range(AT_ONCE):
            offset = tl.where(exists & (r + i < end), (r + i) * columns + column, count)
            x = x + (load(source_a, 0, offset, count, code, WIDE, False, True),)  # noqa: RUF005
            y = y + (load(source_b, 0, offset, count, code, WIDE, False, True),)  # noqa: RUF005
        for i in tl.static_range(AT_ONCE):
            aa, ab, bb = add_products((aa, ab, bb), x[i].to(tl.float64), y[i].to(tl.float64), duo, WIDE)
        r += AT_ONCE
    if place_aa >= 0:
        tl.store(at + place_aa * columns, aa, mask=exists)
    if place_ab >= 0:
        tl.store(at + place_ab * columns, ab, mask=exists)
    if place_bb >= 0:
        tl.store(at + place_bb * columns, bb, mask=exists)


def launch(launch, duos, number, sums, per_column, partials):
    """Of each block of 4096 columns of each row, or of each block of rows."""
    run(_columns if per_column else _rows, (launch.chunks * number,), launch.places, launch.chunk_map, launch.words,
        duos, number, sums, partials, MODELS=launch.models, WIDE=bool(launch.fp64),
        warps=4 if per_column else 8)  # fmt: skip


@kernel
def _totals(partials: tl.int64, spans: tl.int64, slots: tl.int64, sums: tl.int64, result: tl.int64):
    number = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    exists = number < sums
    span = span_of(spans, slots, number)
    at = pointer(partials, tl.float64) + tl.load(span + 2) + number - tl.load(span)
    stride, count = tl.load(span + 1), tl.load(span + 3)
    block = tl.arange(0, GROUP)[:, None]  # all there may be
    inside = exists[None, :] & (block < count[None, :])
    # A missing partner counts as +0, which changes nothing: partials are never -0.
    x = tl.load(at[None, :] + block * stride[None, :], mask=inside, other=0.0)
    total = sum_pairs(tl.reshape(tl.trans(x), (TILE * GROUP,)), GROUP_LEVELS)
    tl.store(pointer(result, tl.float64) + number, total, mask=exists)


def totals(partials, spans, slots, sums, result):
    """From the blocks of each column to the column."""
    run(_totals, (-(-sums // TILE.value),), partials, spans, slots, sums, result, warps=8)
