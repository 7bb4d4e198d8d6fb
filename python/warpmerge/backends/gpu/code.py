"""Programs in the form in which kernels carry them out: instructions packed for device memory.

A row is (op, target, a, b, c, payload, 0, 0) in int16; behind the rows come the operand numbers of the values. What
only the next instruction needs stays in registers: it has no target, and LAST stands for it.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from ...expr.operations import OPS, Op
from ...expr.program import Program, Structure

FIELDS = 8
LAST, NONE = 0xFFFF, 0xFFFE  # csrc/cuda/launch.h
WARP = 32
SHARED = 96 << 10  # bytes of operands of a warp, and constants, up to which they fit into shared memory
FILE = 32 << 20  # bytes for those that do not


@dataclass(frozen=True, slots=True)
class Code:
    """A program at `address` in device memory, with `file_bytes` at `file` for its operands (0: none needed)."""

    program: Program
    address: int
    file: int = 0
    file_bytes: int = 0

    @property
    def operands(self) -> int:
        """All but the constants."""
        return self.program.inputs + 1 + self.program.registers


def packed(program: Program) -> np.ndarray:
    """(instructions + ceil(values / 8), 8) int16."""
    return _packed(program.structure)


@functools.lru_cache(256)
def _packed(structure: Structure) -> np.ndarray:
    code, outputs, ranked = structure.code, structure.outputs, structure.ranked
    rows = np.zeros((len(code), FIELDS), np.uint16)
    for number, (op, target, *operands, payload) in enumerate(code):
        arity = 0 if op == Op.RANK else OPS[op].arity  # ranks are made before
        previous = code[number - 1][1] if number else -1
        fields = [LAST if o == previous else o for o in operands[:arity]] + [NONE] * (3 - arity)
        if op == Op.RANK:
            payload = ranked.index(operands[0])
        rows[number, :6] = (op, target, *fields, payload)
    needed = set(outputs)  # by what comes after an instruction
    for number in range(len(code) - 1, -1, -1):
        target = code[number][1]
        if target not in needed:
            rows[number, 1] = NONE
        needed.discard(target)
        needed.update(int(o) for o in rows[number, 2:5] if o < NONE)
    values = np.zeros(-(-len(outputs) // FIELDS) * FIELDS, np.uint16)
    values[: len(outputs)] = outputs
    return np.concatenate([rows, values.reshape(-1, FIELDS)]).view(np.int16)


def file_bytes(program: Program, fp64: bool, most: int = FILE) -> int:
    """Bytes of memory for operands that do not fit into shared memory: about `most`, at least for one warp."""
    itemsize = 8 if fp64 else 4
    warp = (program.inputs + 1 + program.registers) * WARP * itemsize
    if warp + len(program.constants) * itemsize <= SHARED:
        return 0
    return warp * max(1, min(FILE, most) // warp)
