"""Requests about the rows or columns of a formula's values, which kernels add up tile by tile."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...tasks import Outcome
from ..primitives import Term
from .execution import LaunchGroup, Steps
from .formulas import FormulaExecution, ValueSegment, ValueTile
from .scratch import Scratch
from .tables import BLOCK, COLUMN_TILE, SegmentRow, Table

COLUMN_BLOCKS, COLUMN_SUMS = 64, 1 << 19  # csrc/ops/reduce.h


class Shapes:
    """Rows, their length and their blocks, of each tensor; and the number of each tensor's first row and block."""

    def __init__(self, group: LaunchGroup) -> None:
        self.columns = [r.columns for r in group.requests]
        self.rows = [t.info.count // c for t, c in zip(group.tasks, self.columns, strict=True)]
        self.blocks = [-(-c // BLOCK) for c in self.columns]
        self.first_rows = _starts(self.rows)
        self.first_blocks = _starts([r * b for r, b in zip(self.rows, self.blocks, strict=True)])


class RowsExecution(FormulaExecution):
    """Partial results are those of the blocks of rows."""

    def __init__(
        self,
        group: LaunchGroup,
        residency: Any,
        kernels: Any,
        scratch: Scratch,
        blocks: Sequence[int],
        result: np.ndarray,
    ) -> None:
        """`blocks`: the number of each tensor's first block; `result`: see `results` of Execution."""
        self._blocks = blocks
        super().__init__(group, residency, kernels, scratch, results=[result])

    def block(self, one: ValueSegment) -> int:
        return self._blocks[one.tensor]

    def _measuring(self, tile: ValueTile, rows: Sequence[SegmentRow], rules: np.ndarray | None) -> Table:
        words = np.array([self._words(one) for one in tile.segments], np.int64)
        programs = self._programs(tile.segments)
        return Table(self._measured_kind(), rows, rules=rules, words=words, programs=programs)

    def _words(self, one: ValueSegment) -> list[int]:
        return [self.group.requests[one.tensor].columns]

    def _programs(self, segments: Sequence[ValueSegment]) -> list[int] | None:
        return None


class ColumnsExecution(RowsExecution):
    """`blocks`: the number of each tensor's first partial; `each`: the rows of a block of its columns."""

    def __init__(self, *arguments: Any, each: Sequence[int]) -> None:
        self._each = each
        self._last: Any = None
        super().__init__(*arguments)

    def _words(self, one: ValueSegment) -> list[int]:
        return [*super()._words(one), self._each[one.tensor]]

    def _programs(self, segments: Sequence[ValueSegment]) -> list[int]:
        programs = []
        for one in segments:
            columns, each = self._words(one)
            first, end = one.first // columns, (one.first + one.count) // columns
            programs.append(-(-columns // COLUMN_TILE) * (-(-end // each) - first // each))
        return programs

    def sweep(self, kernel: Callable[..., None], *arguments: Any) -> None:
        """In the order of the rows, whatever stream they are on: a block may go on from one tile to the next."""

        def in_order(stream: Any, *rest: Any) -> None:
            if self._last is not None:
                stream.wait(self._last)
            kernel(stream, *rest)
            self._last = stream.record() if len(self.tiles) > 1 else None

        super().sweep(in_order, *arguments)


def rows(group: LaunchGroup, residency: Any, kernels: Any, scratch: Scratch) -> Steps:
    """Folds of rows."""
    largest = group.request.term == Term.LARGEST
    if group.request.term == Term.PRODUCT:
        terms = Products(group.request.pairs)

        def multiply(run: RowsExecution, partials: int) -> None:
            pairs = run.upload(terms.value_pairs)
            run.sweep(kernels.row_products, pairs, len(terms.value_pairs), terms.count, partials)

        return terms.ordered((yield from _by_row(group, residency, kernels, scratch, terms.count, False, multiply)))

    def fold(run: RowsExecution, partials: int) -> None:
        run.sweep(kernels.row_values, largest, partials)

    return (yield from _by_row(group, residency, kernels, scratch, group.models, largest, fold))


def columns(group: LaunchGroup, residency: Any, kernels: Any, scratch: Scratch) -> Steps:
    """Folds of columns. A value as it is stands as its own square."""
    request = group.request
    terms = Products(request.pairs or [(m, m) for m in range(group.models)])

    def fold(run: RowsExecution, partials: int) -> None:
        pairs = run.upload(terms.value_pairs)
        run.sweep(kernels.column_terms, pairs, len(terms.value_pairs), terms.count, int(request.term), partials)

    largest = request.term == Term.LARGEST
    return terms.ordered((yield from _by_column(group, residency, kernels, scratch, terms.count, largest, fold)))


class Products:
    """Products of two values as kernels take them: each once, by value pairs."""

    def __init__(self, pairs: Sequence[tuple[int, int]]) -> None:
        self._asked = [(min(pair), max(pair)) for pair in pairs]
        self._products = list(dict.fromkeys(self._asked))
        self.value_pairs, self.count = value_pairs_of(self._products), len(self._products)

    def ordered(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """With the terms as they were asked for."""
        order = [self._products.index(product) for product in self._asked]
        return [outcome._replace(value=outcome.value[order]) for outcome in outcomes]


def value_pairs_of(products: Sequence[tuple[int, int]]) -> np.ndarray:
    """(value pairs, 5) int64: two values a and b, the numbers of the sums of aa, ab and bb.

    `products`: different ones, each of two ascending values. A value pair is read once for up to three products; -1
    stands for one that another value pair has, or that is not asked for.
    """
    left = {product: number for number, product in enumerate(products)}
    pairs = []
    for a, b in [product for product in products if product[0] != product[1]]:
        pairs.append([a, b, *(left.pop(product, -1) for product in ((a, a), (a, b), (b, b)))])
    squares = [a for a, _ in left]
    for a, b in itertools.zip_longest(squares[::2], squares[1::2]):
        pairs.append([a, a if b is None else b, left[a, a], -1, -1 if b is None else left[b, b]])
    return np.array(pairs, np.int64)


def _by_row(
    group: LaunchGroup,
    residency: Any,
    kernels: Any,
    scratch: Scratch,
    width: int,
    largest: bool,
    sweep: Callable[[RowsExecution, int], None],
) -> Steps:
    """`width` numbers of each row: `sweep` makes those of its blocks."""
    shapes = Shapes(group)
    count, blocks = shapes.first_rows[-1], shapes.first_blocks[-1]
    run = RowsExecution(group, residency, kernels, scratch, shapes.first_blocks, np.zeros((count, width)))
    total = run.address(0)
    single = blocks == count  # every row is one block
    partials = total if single else run.zeros(blocks, width)
    sweep(run, partials)
    if not single:
        numbers = zip(shapes.first_rows, shapes.rows, shapes.first_blocks, shapes.blocks, strict=False)
        ranges = run.upload(np.array(list(numbers), np.int64))
        kernels.row_totals(run.stream, partials, ranges, group.tensors, count, width, largest, total)
    yield run.fetch()
    return [
        Outcome(_canonical(run.results[1][first : first + n].T.copy()), run.nonfinite_of(s))
        for s, (first, n) in enumerate(zip(shapes.first_rows, shapes.rows, strict=False))
    ]


def _by_column(
    group: LaunchGroup,
    residency: Any,
    kernels: Any,
    scratch: Scratch,
    width: int,
    largest: bool,
    sweep: Callable[[RowsExecution, int], None],
) -> Steps:
    """`width` numbers of each column: `sweep` makes those of its blocks."""
    shapes = Shapes(group)
    each = [rows_of_block(r, c) for r, c in zip(shapes.rows, shapes.columns, strict=True)]
    blocks = [-(-r // e) for r, e in zip(shapes.rows, each, strict=True)]
    sums = [width * c for c in shapes.columns]
    firsts, partials_at = _starts(sums), _starts([s * max(1, b) for s, b in zip(sums, blocks, strict=True)])
    run = ColumnsExecution(group, residency, kernels, scratch, partials_at, np.zeros(firsts[-1]), each=each)
    total = run.address(0)
    single = partials_at == firsts  # no column has two blocks
    partials = total if single else run.zeros(partials_at[-1])
    sweep(run, partials)
    if not single:
        ranges = run.upload(np.array(list(zip(firsts, sums, partials_at, blocks, strict=False)), np.int64))
        kernels.column_totals(run.stream, partials, ranges, group.tensors, firsts[-1], largest, total)
    yield run.fetch()
    return [
        Outcome(_canonical(run.results[1][first : first + n].reshape(width, -1) + 0.0), run.nonfinite_of(s))
        for s, (first, n) in enumerate(zip(firsts, sums, strict=False))
    ]


def rows_of_block(rows: int, columns: int) -> int:
    """Rows of a column's block, at least 1."""
    blocks = min(max(COLUMN_SUMS // max(1, columns), 1), COLUMN_BLOCKS)
    return max(1, -(-rows // blocks))


def _starts(sizes: Sequence[int]) -> list[int]:
    """Where each begins, and behind the last one where it ends."""
    return list(itertools.accumulate(sizes, initial=0))


def _canonical(sums: np.ndarray) -> np.ndarray:
    """With the canonical NaN for any."""
    sums[np.isnan(sums)] = np.nan
    return sums
