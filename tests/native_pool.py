"""Driving the native module directly: the items of one tensor, by the calls that make the items of many."""

from __future__ import annotations

import functools
from array import array
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from warpmerge import _core
from warpmerge.backends.cpu.programs import native_of
from warpmerge.dtypes import BY_NAME
from warpmerge.expr.expression import Expr
from warpmerge.expr.formula import Formula
from warpmerge.models.views import Memory

ROW = array("q", [0])


class NativePool:
    """A native pool whose requests are on one tensor each; a call returns its item. Arguments are plain lists."""

    def __init__(self, pool: Any) -> None:
        self.pool = pool
        self.submit, self.copy = pool.submit, pool.copy

    def weighted_sum(self, rows: Any, tile: int, coefficients: Sequence[float], agree: bool, outputs: list) -> Any:
        made = self.pool.weighted_sum(rows, tile, array("d", coefficients), agree, places(outputs))
        return made.items[0]

    def elect_and_sum(
        self,
        rows: Any,
        tile: int,
        value: Sequence[float],
        vote: Sequence[float],
        divisor: Sequence[float],
        lambda_: float,
        elect: bool,
        keep: list,
        output: Any,
    ) -> Any:
        numbers = array("d", [*value, *vote, *divisor, lambda_])
        return self.pool.elect_and_sum(rows, tile, numbers, elect, keep, places([output])).items[0]

    def select(
        self,
        rows: Any,
        tile: int,
        counts: Sequence[int],
        keep_all_ties: bool,
        *,
        sample: int = 0,
        capacity: int = 0,
    ) -> Any:
        asked, room = array("q", counts), array("q", [capacity])
        return self.pool.select(rows, tile, asked, keep_all_ties, sample, room).items[0]

    def kept_sums(self, rows: Any, tile: int, keep: list) -> Any:
        return self.pool.kept_sums(rows, tile, keep).items[0]

    def tensor_sums(self, rows: Any, tile: int) -> Any:
        return self.pool.tensor_sums(rows, tile).items[0]

    def gram(self, rows: Any, tile: int) -> Any:
        return self.pool.gram(rows, tile).items[0]


@functools.cache
def pool(isa: str, threads: int = 2) -> NativePool:
    return NativePool(_core.Pool(threads, isa))


def buffer(tensor: torch.Tensor) -> Memory:
    assert tensor.is_contiguous()
    kind = BY_NAME[str(tensor.dtype).removeprefix("torch.")]
    return Memory(kind, tuple(tensor.shape), tensor.data_ptr(), tensor)


def operands(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor | None = None,
    policy: int = 0,
    values: Sequence[Expr] = (),
) -> Any:
    """The caller keeps the tensors alive. Policies: 0 error (counts), 1 propagate, 2 base. `values`: of a formula."""
    everything = [*tensors, *([base] if base is not None else [])]
    fp64 = any(t.dtype == torch.float64 for t in everything)
    group = _core.TensorGroup(
        _core.Counts(array("q", [tensors[0].numel()])),
        [_column(t) for t in tensors],
        None if base is None else _column(base),
        fp64,
        policy,
    )
    formulas = [native_of(Formula(tuple(values)).program(len(tensors), fp64))] if values else []
    return group.rows(ROW, True, formulas)


def _column(tensor: torch.Tensor) -> Any:
    column = _core.ViewColumn(b"", array("i"), array("q"), [])
    column.set(0, buffer(tensor).native())
    return column


class Place(NamedTuple):
    """Where a result goes: an address, or an offset in a file."""

    code: int
    at: int
    file: Any = None


def output(tensor: torch.Tensor) -> Place:
    return Place(buffer(tensor).dtype.kernel_code, tensor.data_ptr())


def places(outputs: Sequence[Place]) -> Any:
    code = outputs[0].code
    if outputs[0].file is None:
        return _core.Outputs.in_memory(code, array("Q", [o.at for o in outputs]))
    return _core.Outputs.in_files(code, [o.file for o in outputs], array("q", [o.at for o in outputs]))


def work(pool: Any, *items: Any) -> None:
    """Runs items, those that ask for it again until they are done."""
    pending = list(items)
    while pending:
        launch = pool.submit(pending)
        while not launch.wait(1000):
            pass
        pending = [i for i in pending if isinstance(i, _core.Select) and not i.done]
