"""Folds of columns in float64, in the order of csrc/ops/reduce.h.

A program has COLUMN_TILE columns of a block of rows, and a value pair. It goes down them row by row, the loads of
AT_ONCE rows under way together. A value as it is stands as its own square.
"""

import triton.language as tl

from .elements import F32, F64, INTERPRETED, device, load, pointer
from .geometry import kernel, run
from .reduce_rows import SUBTREE, SUBTREE_LEVELS, TILE, range_of
from .sums import sum_pairs
from .value_pairs import add_products, load_value_pair

COLUMN_TILE = tl.constexpr(128)  # of tables.py
AT_ONCE = tl.constexpr(16 if INTERPRETED else 4)  # rows whose loads are under way together
PRODUCT, LARGEST = tl.constexpr(0), tl.constexpr(2)  # terms; 1 is a value


@device
def _begin(at, offset, begun, exists, TERM: tl.constexpr):
    """What a fold begins with, or what an earlier segment has left."""
    sums = tl.zeros((COLUMN_TILE,), tl.float64)
    if TERM == LARGEST:
        sums = sums - float("inf")
    if begun:
        sums = tl.load(at + offset, mask=exists, other=0.0)
    return sums


@kernel
def _columns(segment_rows: tl.int64, chunk_map: tl.int64, words: tl.int64, value_pairs: tl.int64, number: tl.int64,
             sums: tl.int64, partials: tl.int64, MODELS: tl.constexpr, FP64: tl.constexpr,
             TERM: tl.constexpr):  # fmt: skip
    """A block of rows of COLUMN_TILE columns; one that began in an earlier segment is continued."""
    code: tl.constexpr = F64 if FP64 else F32
    program = tl.program_id(0) // number
    segment = tl.load(pointer(chunk_map, tl.int32) + program).to(tl.int64)
    row = pointer(segment_rows, tl.int64) + segment * (7 + MODELS)
    pair = load_value_pair(value_pairs, tl.program_id(0) % number)
    a, b, sum_aa, sum_ab, sum_bb = pair
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
    aa = _begin(at, sum_aa * columns, begun & (sum_aa >= 0), exists, TERM)
    ab = _begin(at, sum_ab * columns, begun & (sum_ab >= 0), exists, TERM)
    bb = _begin(at, sum_bb * columns, begun & (sum_bb >= 0), exists, TERM)
    source_a, source_b = tl.load(row + 7 + a), tl.load(row + 7 + b)
    while r < end:
        x, y = (), ()
        for i in tl.static_range(AT_ONCE):
            offset = tl.where(exists & (r + i < end), (r + i) * columns + column, count)
            x = x + (load(source_a, 0, offset, count, code, FP64, False, True),)  # noqa: RUF005
            y = y + (load(source_b, 0, offset, count, code, FP64, False, True),)  # noqa: RUF005
        for i in tl.static_range(AT_ONCE):
            u, v = x[i].to(tl.float64), y[i].to(tl.float64)
            if TERM == PRODUCT:
                aa, ab, bb = add_products((aa, ab, bb), u, v, pair, FP64)
            elif TERM == LARGEST:
                inside = r + i < end
                aa = tl.where(inside, tl.maximum(aa, u), aa)
                bb = tl.where(inside, tl.maximum(bb, v), bb)
            else:
                aa, bb = aa + u, bb + v
        r += AT_ONCE
    if sum_aa >= 0:
        tl.store(at + sum_aa * columns, aa, mask=exists)
    if sum_ab >= 0:
        tl.store(at + sum_ab * columns, ab, mask=exists)
    if sum_bb >= 0:
        tl.store(at + sum_bb * columns, bb, mask=exists)


def terms(launch, value_pairs, number, sums, term, partials):
    """Of each block of rows."""
    run(_columns, (launch.chunks * number,), launch.segment_rows, launch.chunk_map, launch.words, value_pairs, number,
        sums, partials, MODELS=launch.models, FP64=bool(launch.fp64), TERM=int(term), warps=4)  # fmt: skip


@kernel
def _totals(partials: tl.int64, ranges: tl.int64, tensors: tl.int64, sums: tl.int64, result: tl.int64,
            LARGEST: tl.constexpr):  # fmt: skip
    number = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    exists = number < sums
    range_row = range_of(ranges, tensors, number)
    at = pointer(partials, tl.float64) + tl.load(range_row + 2) + number - tl.load(range_row)
    stride, count = tl.load(range_row + 1), tl.load(range_row + 3)
    block = tl.arange(0, SUBTREE)[:, None]  # all there may be
    inside = exists[None, :] & (block < count[None, :])
    # A missing partner counts as +0, which changes nothing: partials are never -0.
    x = tl.load(at[None, :] + block * stride[None, :], mask=inside, other=float("-inf") if LARGEST else 0.0)
    if LARGEST:  # noqa: SIM108 - a constexpr decides which one is compiled
        total = tl.max(x, axis=0)
    else:
        total = sum_pairs(tl.reshape(tl.trans(x), (TILE * SUBTREE,)), SUBTREE_LEVELS)
    tl.store(pointer(result, tl.float64) + number, total, mask=exists)


def totals(partials, ranges, tensors, sums, largest, result):
    """From the blocks of each column to the column."""
    run(_totals, (-(-sums // TILE.value),), partials, ranges, tensors, sums, result,
        LARGEST=bool(largest), warps=8)  # fmt: skip
