"""The kernels for formulas, and for what is measured of their values by row, by column and in bins.

Values are float32, in the first two models' place: what the kernel of formulas leaves for the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from warpmerge.backends.gpu.code import Code, packed
from warpmerge.backends.gpu.requests import BINS, SEARCHING
from warpmerge.backends.gpu.rows import rows_of_block, value_pairs_of
from warpmerge.backends.gpu.tables import COLUMN_TILE
from warpmerge.backends.primitives import Term
from warpmerge.backends.reference.backend import row_ranks
from warpmerge.backends.reference.measures import column_sums, row_sums
from warpmerge.expr import expression as f
from warpmerge.expr.expression import Expr
from warpmerge.expr.formula import Formula
from warpmerge.requests import NO_TIE_END, Map

from ..programs import chain, median
from .harness import Bench
from .problem import Problem, Work, checked_combine

PAIRS = [(0, 0), (0, 1), (1, 1)]  # what norms and cosines are made of
OCTAVES = 0x38000000, 0x3C000000  # the eight below 2^-7: most keys


def works(bench: Bench, problem: Callable[..., Problem], dtype: str, models: int) -> Iterator[Work]:
    """Formulas of all models. What takes one input, or two values, is measured with the least models only."""
    yield _formula(bench, problem, "short", median(models), models)
    yield _formula(bench, problem, "long", chain(models), models)
    if models == 2:
        yield _ranks(bench, problem)
        yield _histogram(problem)
        if dtype == "fp32":
            yield _rows(bench, problem)
            yield _products_by_row(bench, problem)
            yield from _products_by_column(bench, problem)


def _whole_rows(problem: Callable[..., Problem], *, base: bool) -> tuple[int, int]:
    """How many elements the bytes allow in rows of a usual length, and that length."""
    count = problem(base=base).count
    columns = 4096 if count >= 1 << 20 else 96
    return count // columns * columns, columns


def _code(p: Problem, formula: Formula) -> tuple[Code, torch.Tensor]:
    """Of a formula, and the memory that it is in."""
    program = formula.program(p.models, fp64=False)
    memory = torch.from_numpy(packed(program)).to(p.device)
    return Code(program, memory.data_ptr()), memory


def mapped(bench: Bench, problem: Callable[..., Problem], request: Map, kernel: str, what: str) -> Work:
    """A formula of all models, under the name of the kernel in whose place it is."""

    def numbers(models: int) -> tuple[float, ...]:
        return request.formula.program(models, fp64=False).constants

    p = problem(base=request.on_deltas, output=True, numbers=numbers, words=[0, 0])
    code, memory = _code(p, request.formula)

    def queue(memory: torch.Tensor = memory) -> None:
        p.kernels.formula(p.stream, p.launch, code, True, request.agree, p.nonfinite.data_ptr())

    return Work(kernel, what, p.nbytes, queue, checked_combine(bench, p, request, queue))


def _formula(bench: Bench, problem: Callable[..., Problem], what: str, value: Expr, models: int) -> Work:
    formula = Formula((value,))
    instructions = len(formula.program(models, fp64=False).code)
    return mapped(bench, problem, Map(formula, on_deltas=True), "formula", f"{what}, {instructions} instructions")


def _ranks(bench: Bench, problem: Callable[..., Problem]) -> Work:
    """Of one model's deltas."""
    count, columns = _whole_rows(problem, base=True)
    count = min(count, bench.sizes.ranked // columns * columns)
    ranks = torch.empty(count, dtype=torch.float32, device=bench.device)
    p = problem(count, base=True, words=[columns, 0, ranks.data_ptr()])
    code, memory = _code(p, Formula((f.rank(0),), columns))

    def queue(memory: torch.Tensor = memory) -> None:
        p.kernels.ranks(p.stream, p.launch, code, 0, columns)

    def check() -> None:
        ranks.fill_(-1)
        queue()
        assert not bool((ranks < 0).any()), "elements were left unranked"
        first = min(count, bench.sizes.checked // columns * columns)
        delta = p.inputs[0][:first].cpu().float() - p.base[:first].cpu().float()
        assert torch.equal(ranks[:first].cpu(), row_ranks(delta, columns).float())

    nbytes = count * (2 * p.inputs[0].element_size() + ranks.element_size())
    return Work("ranks", f"rows of {columns}", nbytes, queue, check)


def _histogram(problem: Callable[..., Problem]) -> Work:
    p = problem(base=True)
    low, high = OCTAVES
    state = torch.tensor([[1, low, high, 0, -1, NO_TIE_END, SEARCHING, 0]] * p.models, device=p.device)
    bins = torch.zeros(p.models, BINS, dtype=torch.int64, device=p.device)

    def queue() -> None:
        p.kernels.select_sweep(p.stream, p.launch, state.data_ptr(), bins.data_ptr(), p.nonfinite.data_ptr())

    def check() -> None:
        bins.zero_()
        queue()
        number = p.kernels.bins
        shift = (high - low).bit_length() - (number - 1).bit_length()
        for found, model in zip(bins, p.inputs, strict=True):
            keys = (model.float() - p.base.float()).abs_().view(torch.int32)
            inside = keys[(keys >= low) & (keys <= high)]
            wanted = torch.bincount((inside - low) >> shift, minlength=number)
            assert torch.equal(found[:number], wanted) and int(found[BINS - 2]) == int((keys > high).sum())

    return Work("histogram", "eight octaves", p.nbytes, queue, check)


def _rows(bench: Bench, problem: Callable[..., Problem]) -> Work:
    count, columns = _whole_rows(problem, base=False)
    p = problem(count, base=False, words=[columns])
    sums = torch.zeros(count // columns, p.models, dtype=torch.float64, device=p.device)

    def queue() -> None:
        p.kernels.row_values(p.stream, p.launch, False, sums.data_ptr())

    def check() -> None:
        queue()
        values = _first(p, columns, bench)
        _same(sums[: values[0].numel() // columns], _sums(values, columns).T)

    return Work("rows", f"sums of {columns}", p.nbytes, queue, check)


class ValuePairs:
    """The pairs on the device."""

    def __init__(self, p: Problem) -> None:
        self._memory = torch.from_numpy(value_pairs_of(PAIRS)).to(p.device)
        self.arguments = self._memory.data_ptr(), len(self._memory), len(PAIRS)


def _products_by_row(bench: Bench, problem: Callable[..., Problem]) -> Work:
    count, columns = _whole_rows(problem, base=False)
    p = problem(count, base=False, words=[columns])
    value_pairs = ValuePairs(p)
    sums = torch.zeros(count // columns, len(PAIRS), dtype=torch.float64, device=p.device)

    def queue() -> None:
        p.kernels.row_products(p.stream, p.launch, *value_pairs.arguments, sums.data_ptr())

    def check() -> None:
        queue()
        values = _first(p, columns, bench)
        _same(sums[: values[0].numel() // columns], _sums(values, columns, PAIRS).T)

    return Work("products", f"3 pairs, rows of {columns}", p.nbytes, queue, check)


class Columns:
    """Products of each column of so many elements, and the totals over its blocks."""

    def __init__(self, problem: Callable[..., Problem], count: int, columns: int) -> None:
        rows = count // columns
        each = rows_of_block(rows, columns)
        self.blocks = -(-rows // each)
        programs = -(-columns // COLUMN_TILE) * self.blocks
        self.p = p = problem(count, base=False, words=[columns, each], programs=programs)
        self.value_pairs, self.sums = ValuePairs(p), len(PAIRS) * columns
        self._partials = torch.zeros(self.blocks, self.sums, dtype=torch.float64, device=p.device)
        self._ranges = torch.tensor([[0, self.sums, 0, self.blocks]], device=p.device)
        self.result = torch.zeros(len(PAIRS), columns, dtype=torch.float64, device=p.device)

    def products(self) -> None:
        p = self.p
        p.kernels.column_terms(p.stream, p.launch, *self.value_pairs.arguments, Term.PRODUCT, self._partials.data_ptr())

    def totals(self) -> None:
        addresses = self._partials.data_ptr(), self._ranges.data_ptr()
        self.p.kernels.column_totals(self.p.stream, *addresses, 1, self.sums, False, self.result.data_ptr())


def _products_by_column(bench: Bench, problem: Callable[..., Problem]) -> Iterator[Work]:
    count, columns = _whole_rows(problem, base=False)
    whole = Columns(problem, count, columns)
    part = Columns(problem, bench.sizes.checked // columns * columns, columns)

    def check() -> None:
        part.products()
        part.totals()
        _same(part.result, _sums([t.cpu() for t in part.p.inputs], columns, PAIRS, column_sums))

    what = f"3 pairs, columns, rows of {columns}"
    yield Work("products", what, whole.p.nbytes, whole.products, check)
    # Its sums were compared above; repeated, it adds up what it has left.
    yield Work("column_totals", what, whole.blocks * whole.sums * 8, whole.totals, lambda: None)


def _sums(
    values: list[torch.Tensor],
    columns: int,
    pairs: tuple[tuple[int, int], ...] = (),
    sums: Callable[[torch.Tensor], torch.Tensor] = row_sums,
) -> np.ndarray:
    """The reference's sums of the values, or of products of them."""
    matrices = [v.double().view(-1, columns) for v in values]
    terms = [matrices[i] * matrices[k] for i, k in pairs] or matrices
    return torch.stack([sums(term) for term in terms]).numpy()


def _first(p: Problem, columns: int, bench: Bench) -> list[torch.Tensor]:
    """The rows that are compared."""
    count = min(p.count, bench.sizes.checked // columns * columns)
    return [t[:count].cpu() for t in p.inputs]


def _same(got: torch.Tensor, wanted: np.ndarray) -> None:
    found = np.ascontiguousarray(got.cpu().numpy())
    assert np.array_equal(found.view(np.int64), np.ascontiguousarray(wanted).view(np.int64)), "not the reference's bits"
