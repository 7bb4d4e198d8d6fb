"""Runs the Triton kernels that know rows in the interpreter against backends/torch.py, bit for bit.

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
from warpmerge.backends.gpu.tables import BLOCK, Kind, SegmentRow, Table
from warpmerge.triton_kernels import reduce_rows


def check_rows(*problems, largest, cuts=()):
    """`problems`: values of a tensor, (rows, columns) each; `cuts`: row blocks at which tensors are cut."""
    models, dtype = len(problems[0]), problems[0][0].dtype
    segments, words, ranges, made, blocks = [], [], [], 0, 0
    for tensor, values in enumerate(problems):
        count, columns = values[0].shape
        each = -(-columns // BLOCK)
        starts = [r * columns + b * BLOCK for r in range(count) for b in range(each)]
        total = count * columns
        bounds = [0, *(starts[c] for c in cuts if c < len(starts)), total]
        for first, end in itertools.pairwise(bounds):
            addresses = tuple(v.data_ptr() + first * v.element_size() for v in values)
            segments.append(SegmentRow(end - first, first, tensor, blocks, total, 0, addresses, ()))
            words.append([columns])
        ranges.append([made, count, blocks, each])
        made, blocks = made + count, blocks + len(starts)
    kind = Kind((code(problems[0][0]),) * models, -1, 0, 0, dtype == torch.float64, 1, True)
    table = Table(kind, segments, words=np.array(words, np.int64))
    memory = np.zeros(table.nbytes, np.uint8)
    launch = table.write(memory, memory.ctypes.data)
    partials, result = np.full((blocks, models), np.nan), np.full((made, models), np.nan)
    reduce_rows.values(launch, largest, at(partials))
    assert not np.isnan(partials).any(), "blocks were left out"
    ranges = np.array(ranges, np.int64)
    reduce_rows.totals(at(partials), at(ranges), len(problems), made, models, largest, at(result))
    wanted = [folds(values, "row", "max" if largest else "sum").T for values in problems]
    same(result, np.concatenate(wanted))


COLUMNS = [1, 3, 4, 5, 32, 33, 256, 257, 4095, 4096, 4097, 20_000]


@cases("rows", columns=COLUMNS, largest=[False, True])
def _(columns, largest):
    count = 2 if columns > 1000 else 20
    check_rows([spread((count, columns))], largest=largest)
    check_rows([spread((count, columns)), -spread((count, columns), seed=1)], largest=largest, cuts=(1, 3))


@cases("rows of several tensors", dtype=[torch.float32, torch.float64], largest=[False, True])
def _(dtype, largest):
    shapes = (5, 5000), (2400, 7), (1, 1), (2, 9000), (40, 300)
    problems = [[spread(shape, dtype, seed=k), spread(shape, dtype, seed=9 + k)] for k, shape in enumerate(shapes)]
    check_rows(*problems, largest=largest, cuts=(1, 2, 4))


@cases("a row of many blocks", columns=[64 * BLOCK, 65 * BLOCK - 5])
def _(columns):
    check_rows([spread((1, columns))], largest=False)
    check_rows([spread((1, columns))], largest=True)


@case
def rows_of_zeros():
    zeros = torch.zeros(20, 300)
    check_rows([zeros, -zeros], largest=False)
    check_rows([-zeros], largest=True)


if __name__ == "__main__":
    run_cases()
