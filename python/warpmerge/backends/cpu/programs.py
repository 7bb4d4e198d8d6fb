"""Formulas for the compiled CPU kernels."""

from __future__ import annotations

from typing import Any

from ... import _core
from ...errors import MergeError
from ...expr.formula import Formula
from ...expr.program import Program
from ...requests import NO_TIE_END, Mask, RandomMask, RankMask
from ...tasks import TensorTask


def native(task: TensorTask, formula: Formula) -> Any:
    """The formula's program as the native module has it, made once. Raises MergeError if it does not fit the tensor."""
    program = formula.program(len(task.group.inputs), task.fp64, functions=True)
    check_rows(task, program)
    if program.native is None:
        program.native = native_of(program)
    return program.native


def native_of(program: Program) -> Any:
    """The program as the native module has it. Its code is translated once for all programs of the structure."""
    structure = program.structure
    if structure.native is None:
        structure.native = _core.Code(
            structure.inputs, structure.code, structure.registers, structure.outputs, len(program.constants)
        )
    return _core.Formula(
        structure.native,
        program.constants,
        [native_keep(rule) for rule in program.rules],
        program.keys,
        _float64(program.vectors),
        max(1, program.columns),
    )


def native_keep(keep: Mask) -> Any:
    if isinstance(keep, RandomMask):
        return _core.Mask.drawn(keep.key, keep.cut)
    if isinstance(keep, RankMask):
        return _core.Mask.ranked(keep.key, keep.low, keep.step, keep.columns)
    return _core.Mask(keep.threshold, min(keep.tie_end, NO_TIE_END))


def _float64(vectors: tuple[Any, ...]) -> list[Any]:
    if not vectors:
        return []
    import numpy as np

    return [np.ascontiguousarray(v, np.float64) for v in vectors]


def check_rows(task: TensorTask, program: Program) -> None:
    """The kernels read vectors, and whole rows for ranks, without looking whether they are there."""
    count, columns = task.info.count, program.columns
    if count == 0:
        return
    if not columns:
        if program.vectors or program.ranked:
            raise MergeError(
                f"{task.info}: a formula that is about rows needs their length: Formula(values, columns=...)."
            )
        return
    if columns < 0 or count % columns:
        raise MergeError(f"{task.info}: a formula has rows of {columns} elements, but the tensor has {count} in all.")
    for vector, by_row in zip(program.vectors, program.by_row, strict=True):
        wanted = count // columns if by_row else columns
        if len(vector) != wanted:
            place = "row" if by_row else "column"
            raise MergeError(f"{task.info}: a vector needs an entry for each {place}, {wanted}, but has {len(vector)}.")
