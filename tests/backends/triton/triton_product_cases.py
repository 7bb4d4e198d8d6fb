"""Runs the Triton kernels for products in the interpreter against backends/torch.py, bit for bit.

A program of its own like triton_measure_cases.py. Prints one line per failure, and last the number of cases.
"""

import itertools
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from reduce_cases import folds
from triton_helpers import at, case, cases, code, run_cases, same, spread
from warpmerge.backends.gpu.rows import rows_of_block, value_pairs_of
from warpmerge.backends.gpu.tables import BLOCK, COLUMN_TILE, Kind, SegmentRow, Table
from warpmerge.backends.primitives import Term
from warpmerge.triton_kernels import reduce_columns, reduce_rows

PAIRS = ((0, 0), (0, 1), (1, 2), (2, 2))
SQUARES = ((0, 0), (1, 1), (2, 2))  # values as they are


def up(count, size):
    return -(-count // size)


KINDS = {Term.PRODUCT: "sum", Term.VALUE: "sum", Term.LARGEST: "max"}


def check_products(*problems, pairs=PAIRS, per_column, cuts=(), term=Term.PRODUCT):
    """`problems`: values of a tensor, (rows, columns) each; `cuts`: rows at which tensors are cut, a launch to each."""
    models, dtype = len(problems[0]), problems[0][0].dtype
    launches = [([], [], []) for _ in range(len(cuts) + 1)]
    ranges, wanted, results, partials = [], [], 0, 0
    for tensor, values in enumerate(problems):
        count, columns = values[0].shape
        each = rows_of_block(count, columns)
        bounds = [0, *(c for c in cuts if c < count), count]
        place = partials if per_column else partials // len(pairs)
        for (first, end), (segments, words, programs) in zip(itertools.pairwise(bounds), launches, strict=False):
            addresses = tuple(v[first:].data_ptr() for v in values)
            size = (end - first) * columns
            segments.append(SegmentRow(size, first * columns, tensor, place, count * columns, 0, addresses, ()))
            words.append([columns, each] if per_column else [columns])
            programs.append(up(columns, COLUMN_TILE) * (up(end, each) - first // each))
        if per_column:
            ranges.append([results, columns * len(pairs), place, up(count, each)])
            partials += columns * len(pairs) * up(count, each)
        else:
            ranges.append([results, count, place, up(columns, BLOCK)])
            partials += count * len(pairs) * up(columns, BLOCK)
        results += ranges[-1][1]
        asked = () if term != Term.PRODUCT else pairs
        wanted.append(folds(values, "column" if per_column else "row", KINDS[term], asked))
    partials, value_pairs = np.full(partials, np.nan), value_pairs_of(pairs)
    kind = Kind((code(problems[0][0]),) * models, -1, 0, 0, dtype == torch.float64, 1, True)
    for segments, words, programs in launches:
        words = np.array(words, np.int64)
        table = Table(kind, segments, words=words, programs=programs if per_column else None)
        memory = np.zeros(table.nbytes, np.uint8)
        launch = table.write(memory, memory.ctypes.data)
        if per_column:
            reduce_columns.terms(launch, at(value_pairs), len(value_pairs), len(pairs), term, at(partials))
        else:
            reduce_rows.products(launch, at(value_pairs), len(value_pairs), len(pairs), at(partials))
    assert not np.isnan(partials).any(), "blocks were left out"
    ranges = np.array(ranges, np.int64)
    if per_column:
        found = np.full(results, np.nan)
        reduce_columns.totals(at(partials), at(ranges), len(problems), results, term == Term.LARGEST, at(found))
        same(found, np.concatenate([w.reshape(-1) for w in wanted]))
    else:
        found = np.full((results, len(pairs)), np.nan)
        reduce_rows.totals(at(partials), at(ranges), len(problems), results, len(pairs), False, at(found))
        same(found, np.concatenate([w.T for w in wanted]))


def problem(shape, dtype=torch.float32):
    return [spread(shape, dtype, seed=k) for k in range(3)]


# A program of a column kernel takes 20 ms in the interpreter. There is one for each block of rows, tile of 128 columns
# and pair of inputs. Up to 64 rows make a block each; of 66 a block has two, of 130 three, of 1030 seventeen.


@cases("products of rows", columns=[1, 4, 5, 33, 257, 4097])
def _(columns):
    count = 3 if columns > 200 else 70
    check_products(problem((count, columns)), per_column=False)
    check_products(problem((count, columns)), pairs=((0, 0),), per_column=False, cuts=(1, 2))


@cases("products of columns", shape=[(66, 33), (3, 257)])
def _(shape):
    check_products(problem(shape), per_column=True)
    check_products(problem(shape), pairs=((0, 0),), per_column=True, cuts=(1, 2))


@case
def more_rows_in_a_block_than_are_loaded_at_once():
    check_products(problem((1030, 1)), pairs=((0, 0),), per_column=True)


@cases("products of several tensors", dtype=[torch.float32, torch.float64])
def _(dtype):
    shapes = (3, 5000), (200, 7), (1, 1), (2, 130)
    check_products(*(problem(s, dtype) for s in shapes), per_column=False)
    shapes = (3, 260), (66, 7), (1, 1), (2, 130)
    check_products(*(problem(s, dtype) for s in shapes), per_column=True)


@cases("a column block over several launches", dtype=[torch.float32, torch.float64])
def _(dtype):
    check_products(problem((130, 7), dtype), per_column=True, cuts=(1, 5, 64))  # inside blocks


@cases("values of columns", term=[Term.VALUE, Term.LARGEST], dtype=[torch.float32, torch.float64])
def _(term, dtype):
    """Cut inside a block, and between blocks; tiles that are full and not."""
    shapes = (3, 257), (2, 1), *([(66, 33)] if dtype == torch.float32 else [])
    check_products(*(problem(s, dtype) for s in shapes), pairs=SQUARES, per_column=True, cuts=(1, 2), term=term)


@cases("totals", blocks=[1, 2, 3, 63, 64])
def _(blocks):
    partials = np.exp(np.random.default_rng(blocks).normal(size=(blocks, 5)))
    wanted = partials.copy()
    while len(wanted) > 1:
        odd = wanted[len(wanted) & ~1 :]
        wanted = np.concatenate([wanted[0 : len(wanted) - len(odd) : 2] + wanted[1::2], odd])
    ranges, found = np.array([[0, 5, 0, blocks]]), np.full(5, np.nan)
    reduce_columns.totals(at(partials), at(ranges), 1, 5, False, at(found))
    same(found, wanted[0])


@case
def products_of_zeros():
    zeros = torch.zeros(3, 300)
    for per_column in (False, True):
        check_products([zeros, -zeros, -zeros], per_column=per_column)


if __name__ == "__main__":
    run_cases()
