"""Ranks of magnitudes within rows: csrc/ops/select.h. One program per chunk, for the rows that begin in it.

Short rows are sorted, several side by side. A longer row is divided into tiles. Each is looked up in all tiles of its
row, sorted; a program takes the tiles that begin in its chunk. Keys of float64 leave no room for a column beside them
and are counted.
"""

import triton
import triton.language as tl

from .deltas import load_delta
from .elements import INTERPRETED, device, magnitude_key, pointer, segment_of
from .geometry import kernel, run
from .reduce_rows import first_from

WIDEST = 4096  # columns that are sorted at once
AT_ONCE = 64 if INTERPRETED else 2048  # elements of short rows that are sorted side by side
COUNTED = 512  # elements of a row in float64 that are compared
WITH = tl.constexpr(256 if INTERPRETED else 16)  # with so many at a time
LAST = tl.constexpr(0x7FFFFFFFFFFFFFFF)  # sorts behind every element


@device
def _keys(tensor, row, column, exists, INPUT: tl.constexpr, MODELS: tl.constexpr, BASE: tl.constexpr,
          FP64: tl.constexpr, TO_ZERO: tl.constexpr):  # fmt: skip
    """Magnitude keys of the settled deltas as int64, LAST where there is no element."""
    source, base_source, first, count, columns = tensor
    inside = exists & (column < columns)
    offset = tl.where(inside, row * columns + column - first, count)
    d, _top = load_delta(source, base_source, 0, offset, count, 0, 0, INPUT, BASE, MODELS, FP64, TO_ZERO, False,
                         False, True)  # fmt: skip
    return tl.where(inside, magnitude_key(d, FP64).to(tl.int64), LAST)


@device
def _packed(tensor, row, column, exists, INPUT: tl.constexpr, MODELS: tl.constexpr, BASE: tl.constexpr,
            TO_ZERO: tl.constexpr):  # fmt: skip
    """Keys with their columns in the lower half."""
    keys = _keys(tensor, row, column, exists, INPUT, MODELS, BASE, False, TO_ZERO)
    return tl.where(keys == LAST, LAST, (keys << 32) | column)


@device
def _sort_rows(tensor, target, begin, end, INPUT: tl.constexpr, MODELS: tl.constexpr, BASE: tl.constexpr,
               TO_ZERO: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    """Whole rows of at most WIDTH columns, those that begin from flat index `begin` on and before `end`."""
    _source, _base_source, first, _count, columns = tensor
    row, beyond = (begin + columns - 1) // columns, (end + columns - 1) // columns
    column = tl.arange(0, WIDTH)[None, :]
    while row < beyond:
        rows = row + tl.arange(0, ROWS)[:, None]
        order = tl.sort(_packed(tensor, rows, column, rows < beyond, INPUT, MODELS, BASE, TO_ZERO), 1)
        at = rows * columns - first + (order & 0xFFFFFFFF)
        tl.store(target + at, tl.broadcast_to(column.to(tl.float32), (ROWS, WIDTH)), mask=order != LAST)
        row += ROWS


@device
def _count_below(order, own, WIDTH: tl.constexpr):
    """How many of the sorted (WIDTH,) `order` are below each of `own`."""
    low = tl.zeros((WIDTH,), tl.int32)
    step = WIDTH // 2
    while step > 0:
        low = tl.where(tl.gather(order, low + (step - 1), 0) < own, low + step, low)
        step = step // 2
    return low + (tl.gather(order, low, 0) < own).to(tl.int32)


@device
def _rank_tiles(tensor, target, begin, end, INPUT: tl.constexpr, MODELS: tl.constexpr, BASE: tl.constexpr,
                 FP64: tl.constexpr, TO_ZERO: tl.constexpr, WIDTH: tl.constexpr):  # fmt: skip
    """Tiles of WIDTH columns, those that begin from flat index `begin` on and before `end`."""
    _source, _base_source, first, _count, columns = tensor
    per_row = (columns + WIDTH - 1) // WIDTH
    tile = first_from(begin, columns, per_row, WIDTH)
    beyond = first_from(end, columns, per_row, WIDTH)
    while tile < beyond:
        row = tile // per_row
        own_column = tl.arange(0, WIDTH) + tile % per_row * WIDTH
        ranks = tl.zeros((WIDTH,), tl.int32)
        start = columns * 0
        if FP64:
            own = _keys(tensor, row, own_column, True, INPUT, MODELS, BASE, FP64, TO_ZERO)
            while start < columns:
                column = start + tl.arange(0, WITH)
                other = _keys(tensor, row, column, True, INPUT, MODELS, BASE, FP64, TO_ZERO)[None, :]
                below = (other < own[:, None]) | ((other == own[:, None]) & (column[None, :] < own_column[:, None]))
                ranks += tl.sum(below.to(tl.int32), axis=1)
                start += WITH
        else:
            own = _packed(tensor, row, own_column, True, INPUT, MODELS, BASE, TO_ZERO)
            while start < columns:
                column = start + tl.arange(0, WIDTH)
                order = tl.sort(_packed(tensor, row, column, True, INPUT, MODELS, BASE, TO_ZERO))
                ranks += _count_below(order, own, WIDTH)
                start += WIDTH
        at = target + row * columns - first + own_column
        tl.store(at, ranks.to(tl.float64 if FP64 else tl.float32), mask=own_column < columns)
        tile += 1


@kernel
def _kernel(segment_rows: tl.int64, chunk_map: tl.int64, words: tl.int64, words_each: tl.int64, word: tl.int64,
            k: tl.int64, INPUT: tl.constexpr, MODELS: tl.constexpr, OUTPUTS: tl.constexpr, BASE: tl.constexpr,
            FP64: tl.constexpr, TO_ZERO: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    segment, row, begin, length = segment_of(tl.program_id(0), segment_rows, chunk_map, 7 + MODELS + OUTPUTS)
    own_words = pointer(words, tl.int64) + segment * words_each
    first = tl.load(row + 1)
    tensor = tl.load(row + 7 + k), tl.load(row + 6), first, tl.load(row), tl.load(own_words)
    target = pointer(tl.load(own_words + word), tl.float64 if FP64 else tl.float32)
    begin += first
    if ROWS:
        _sort_rows(tensor, target, begin, begin + length, INPUT, MODELS, BASE, TO_ZERO, WIDTH, ROWS)
    else:
        _rank_tiles(tensor, target, begin, begin + length, INPUT, MODELS, BASE, FP64, TO_ZERO, WIDTH)


def launch(launch, code, ordinal, longest):
    """Of the input that is the `ordinal`-th of those that the program ranks; no row is longer than `longest`."""
    program = code.program
    k = program.ranked[ordinal]
    before = 2 + len(program.keys) + len(program.vectors)
    width = max(16, min(triton.next_power_of_2(longest), COUNTED if launch.fp64 else WIDEST))
    rows = 0 if launch.fp64 or longest > width else max(1, AT_ONCE // width)
    run(_kernel, (launch.chunks,), launch.segment_rows, launch.chunk_map, launch.words, before + len(program.ranked),
        before + ordinal, k, INPUT=launch.inputs[k], MODELS=launch.models, OUTPUTS=launch.outputs, BASE=launch.base,
        FP64=bool(launch.fp64), TO_ZERO=launch.policy == 2, WIDTH=width, ROWS=rows, warps=8)  # fmt: skip
