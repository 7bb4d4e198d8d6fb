"""Folds of rows in float64, in the order of csrc/ops/reduce.h.

A program has a chunk, and one value or one value pair of it. It works on as many blocks of rows side by side as its
lanes hold, so that short rows leave few idle.
"""

import triton.language as tl

from .elements import BLOCK, F32, F64, INTERPRETED, LANES, device, load, pointer, segment_of
from .geometry import kernel, run
from .sums import sum_pairs
from .value_pairs import add_products, load_value_pair

# A step of the interpreter costs the same whatever its size.
ROOM = tl.constexpr(16384 if INTERPRETED else 1024)  # lanes of a program
SUBTREE = tl.constexpr(64)  # blocks that are added at once
SUBTREE_LEVELS = tl.constexpr(6)
TILE = tl.constexpr(1024 if INTERPRETED else 16)  # results of a program that adds blocks


@device
def first_from(flat, columns, blocks, SIZE: tl.constexpr):
    """The first of the blocks of SIZE columns of a row, counted over all rows, that does not begin before `flat`."""
    return flat // columns * blocks + (flat % columns + SIZE - 1) // SIZE


@device
def row_blocks(row, begin, length, columns):
    """The first block of a row that begins in a chunk, that behind the last one, and rows of lanes in each."""
    per_row = (columns + BLOCK - 1) // BLOCK
    at = tl.load(row + 1) + begin
    lanes = (tl.minimum(columns, BLOCK) + LANES - 1) // LANES
    return first_from(at, columns, per_row, BLOCK), first_from(at + length, columns, per_row, BLOCK), lanes


@device
def row_lanes(row, block, end, columns, WIDTH: tl.constexpr):
    """Of WIDTH lanes of each block from `block` on: where it begins in the segment, and its size, 0 from `end` on."""
    per_row = (columns + BLOCK - 1) // BLOCK
    number = block + tl.arange(0, ROOM) // WIDTH
    column = number % per_row * BLOCK
    start = number // per_row * columns + column - tl.load(row + 1)
    return start, tl.where(number < end, tl.minimum(columns - column, BLOCK), 0)


@device
def load_lanes(source, start, size, r, length, FP64: tl.constexpr, WIDTH: tl.constexpr):
    """Row `r` of the lanes, in float64, and which of them there are; the others are 0."""
    i = tl.arange(0, ROOM) % WIDTH + r * LANES
    inside = i < size
    offset = tl.where(inside, start + i, length)
    return load(source, 0, offset, length, F64 if FP64 else F32, FP64, False, True).to(tl.float64), inside


@device
def _blocks(row, source, columns, block, end, rows, at, MODELS: tl.constexpr, FP64: tl.constexpr,
            LARGEST: tl.constexpr, WIDTH: tl.constexpr, LEVELS: tl.constexpr):  # fmt: skip
    """Writes the partials of the row blocks from `block` to `end`, several at once, WIDTH = 2^LEVELS lanes of each."""
    at_once: tl.constexpr = ROOM // WIDTH
    length = tl.load(row)
    while block < end:
        start, size = row_lanes(row, block, end, columns, WIDTH)
        total = tl.zeros((ROOM,), tl.float64)
        if LARGEST:
            total = total - float("inf")
        r = 0
        while r < rows:
            x, inside = load_lanes(source, start, size, r, length, FP64, WIDTH)
            total = tl.maximum(total, tl.where(inside, x, float("-inf"))) if LARGEST else total + x
            r += 1
        own = block + tl.arange(0, at_once)
        total = tl.max(tl.reshape(total, (at_once, WIDTH)), axis=1) + 0.0 if LARGEST else sum_pairs(total, LEVELS)
        tl.store(at + own * MODELS, total, mask=own < end)
        block += at_once


@kernel
def _values(segment_rows: tl.int64, chunk_map: tl.int64, words: tl.int64, partials: tl.int64, MODELS: tl.constexpr,
          FP64: tl.constexpr, LARGEST: tl.constexpr):  # fmt: skip
    chunk, k = tl.program_id(0) // MODELS, tl.program_id(0) % MODELS
    segment, row, begin, length = segment_of(chunk, segment_rows, chunk_map, 7 + MODELS)
    source = tl.load(row + 7 + k)
    columns = tl.load(pointer(words, tl.int64) + segment)
    block, end, rows = row_blocks(row, begin, length, columns)
    at = pointer(partials, tl.float64) + tl.load(row + 4) * MODELS + k
    # Lanes that no row fills would add nothing but zeros.
    if columns <= 4:
        _blocks(row, source, columns, block, end, rows, at, MODELS, FP64, LARGEST, 4, 2)
    elif columns <= 32:
        _blocks(row, source, columns, block, end, rows, at, MODELS, FP64, LARGEST, 32, 5)
    else:
        _blocks(row, source, columns, block, end, rows, at, MODELS, FP64, LARGEST, 256, 8)


def values(launch, largest, partials):
    """Of each block of 4096 columns of each row."""
    run(_values, (launch.chunks * launch.models,), launch.segment_rows, launch.chunk_map, launch.words, partials,
        MODELS=launch.models, FP64=bool(launch.fp64), LARGEST=bool(largest), warps=8)  # fmt: skip


@device
def _product_blocks(row, pair, columns, block, end, rows, at, sums, FP64: tl.constexpr, WIDTH: tl.constexpr,
            LEVELS: tl.constexpr):  # fmt: skip
    """Writes the partials of the row blocks from `block` to `end`, several at once, WIDTH = 2^LEVELS lanes of each."""
    at_once: tl.constexpr = ROOM // WIDTH
    a, b, sum_aa, sum_ab, sum_bb = pair
    length, first, second = tl.load(row), tl.load(row + 7 + a), tl.load(row + 7 + b)
    while block < end:
        start, size = row_lanes(row, block, end, columns, WIDTH)
        zeros = tl.zeros((ROOM,), tl.float64)
        aa, ab, bb = zeros, zeros, zeros
        r = 0
        while r < rows:
            x, _inside = load_lanes(first, start, size, r, length, FP64, WIDTH)
            y, _inside = load_lanes(second, start, size, r, length, FP64, WIDTH)
            aa, ab, bb = add_products((aa, ab, bb), x, y, pair, FP64)
            r += 1
        own = block + tl.arange(0, at_once)
        for i in range(3):  # one after the other: a tree takes more registers than the sums
            number = tl.where(i == 0, sum_aa, tl.where(i == 1, sum_ab, sum_bb))
            if number >= 0:
                total = tl.where(i == 0, aa, tl.where(i == 1, ab, bb))
                tl.store(at + own * sums + number, sum_pairs(total, LEVELS), mask=own < end)
        block += at_once


@kernel
def _products(segment_rows: tl.int64, chunk_map: tl.int64, words: tl.int64, value_pairs: tl.int64, number: tl.int64,
          sums: tl.int64, partials: tl.int64, MODELS: tl.constexpr, FP64: tl.constexpr):  # fmt: skip
    segment, row, begin, length = segment_of(tl.program_id(0) // number, segment_rows, chunk_map, 7 + MODELS)
    pair = load_value_pair(value_pairs, tl.program_id(0) % number)
    columns = tl.load(pointer(words, tl.int64) + segment)
    block, end, rows = row_blocks(row, begin, length, columns)
    at = pointer(partials, tl.float64) + tl.load(row + 4) * sums
    # Lanes that no row fills would add nothing but zeros.
    if columns <= 4:
        _product_blocks(row, pair, columns, block, end, rows, at, sums, FP64, 4, 2)
    elif columns <= 32:
        _product_blocks(row, pair, columns, block, end, rows, at, sums, FP64, 32, 5)
    else:
        _product_blocks(row, pair, columns, block, end, rows, at, sums, FP64, 256, 8)


def products(launch, value_pairs, number, sums, partials):
    """Of each block of 4096 columns of each row."""
    run(_products, (launch.chunks * number,), launch.segment_rows, launch.chunk_map, launch.words, value_pairs, number,
        sums, partials, MODELS=launch.models, FP64=bool(launch.fp64), warps=8)  # fmt: skip


@device
def range_of(ranges, tensors, number):
    """The rows of `ranges` (tensors, 4) whose first column is the last one that is not above `number`."""
    table = pointer(ranges, tl.int64)
    tensor, beyond = number * 0, number * 0 + tensors
    while tl.max(beyond - tensor, axis=0) > 1:
        middle = (tensor + beyond) // 2
        found = tl.load(table + middle * 4) <= number
        tensor, beyond = tl.where(found, middle, tensor), tl.where(found, beyond, middle)
    return table + tensor * 4


@kernel
def _totals(partials: tl.int64, ranges: tl.int64, tensors: tl.int64, rows: tl.int64, result: tl.int64,
            MODELS: tl.constexpr, LARGEST: tl.constexpr):  # fmt: skip
    k = tl.program_id(0) % MODELS
    row = (tl.program_id(0) // MODELS).to(tl.int64) * TILE + tl.arange(0, TILE)
    exists = row < rows
    range_row = range_of(ranges, tensors, row)
    first, first_block, count = tl.load(range_row), tl.load(range_row + 2), tl.load(range_row + 3)
    at = pointer(partials, tl.float64) + (first_block + (row - first) * count) * MODELS + k
    count = tl.where(exists, count, 0)
    filled = count > 0
    most = tl.max(count, axis=0)
    while most > 0:
        subtrees = (count + SUBTREE - 1) // SUBTREE
        subtree = most * 0
        while subtree * SUBTREE < most:
            i = subtree * SUBTREE + tl.arange(0, SUBTREE)[None, :]
            x = tl.load(at[:, None] + i * MODELS, mask=i < count[:, None], other=float("-inf") if LARGEST else 0.0)
            # A missing partner counts as +0, which changes nothing: partials are never -0.
            total = tl.max(x, axis=1) if LARGEST else sum_pairs(tl.reshape(x, (TILE * SUBTREE,)), SUBTREE_LEVELS)
            tl.debug_barrier()  # every thread has read before one of them writes
            tl.store(at + subtree * MODELS, total, mask=subtree < subtrees)
            subtree += 1
        tl.debug_barrier()
        most = tl.where(most > SUBTREE, tl.max(subtrees, axis=0), 0)
        count = subtrees
    tl.store(pointer(result, tl.float64) + row * MODELS + k, tl.load(at, mask=filled, other=0.0), mask=exists)


def totals(partials, ranges, tensors, rows, models, largest, result):
    """From the blocks of each row to the row. Destroys the partials."""
    run(_totals, (-(-rows // TILE.value) * models,), partials, ranges, tensors, rows, result, MODELS=models,
        LARGEST=bool(largest), warps=8)  # fmt: skip
