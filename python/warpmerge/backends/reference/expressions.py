"""Formulas of the reference: programs carried out one operation at a time on whole tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ...expr.operations import OPS, Op
from ...expr.program import Program
from .measures import canonical, keep_mask, philox_lanes, row_ranks


def scalar(value: float, like: torch.Tensor) -> torch.Tensor:
    """A coefficient rounded once from float64 to the compute type."""
    return torch.tensor(value, dtype=torch.float64).to(like.dtype)


def evaluate(program: Program, x: list[torch.Tensor], base: torch.Tensor | None) -> list[torch.Tensor]:
    """The values of a program for (n,) inputs."""
    zero, one = torch.zeros_like(x[0]), torch.ones_like(x[0])
    operands: dict[int, torch.Tensor] = dict(enumerate(x))
    operands[len(x)] = zero if base is None else base
    for j, constant in enumerate(program.constants):
        operands[len(x) + 1 + program.registers + j] = scalar(constant, zero).expand_as(zero)
    index = torch.arange(len(zero))
    for op, target, *abc, payload in program.code:
        a, b, c = (operands.get(number, zero) for number in abc)
        match OPS[op]:
            case Op.ADD:
                y = a + b
            case Op.SUB:
                y = a - b
            case Op.MUL:
                y = a * b
            case Op.DIV:
                y = a / b
            case Op.SQRT:
                y = _square_root(a)
            case Op.ABS:
                y = a.abs()
            case Op.NEG:
                y = -a
            case Op.MIN:
                y = torch.where(a < b, a, b)
            case Op.MAX:
                y = torch.where(a > b, a, b)
            case Op.LT:
                y = torch.where(a < b, one, zero)
            case Op.LE:
                y = torch.where(a <= b, one, zero)
            case Op.EQ:
                y = torch.where(a == b, one, zero)
            case Op.WHERE:
                y = torch.where(a != 0, b, c)
            case Op.POW2:
                y = _power_of_two(a)
            case Op.EXPONENT:
                y = _exponent(a)
            case Op.KEEP:
                y = torch.where(keep_mask(a, program.rules[payload]), a, zero)
            case Op.DRAW:
                y = philox_lanes(program.keys[payload], len(zero)).to(zero.dtype)
            case Op.ROW:
                y = _vector(program.vectors[payload], zero)[index // program.columns]
            case Op.COLUMN:
                y = _vector(program.vectors[payload], zero)[index % program.columns]
            case Op.RANK:
                y = row_ranks(a, program.columns)
            case unknown:
                raise AssertionError(f"the reference lacks the operation {unknown}")
        operands[target] = y
    return [operands[number] for number in program.outputs]


def all_same(x: list[torch.Tensor]) -> torch.Tensor:
    integer = torch.int64 if x[0].dtype == torch.float64 else torch.int32
    same = torch.ones_like(x[0], dtype=torch.bool)
    first = canonical(x[0])
    for d in x[1:]:
        same &= canonical(d).view(integer) == first.view(integer)
    return same


def _vector(values: Any, like: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.float64)).to(like.dtype)


def _square_root(a: torch.Tensor) -> torch.Tensor:
    with np.errstate(invalid="ignore"):
        return torch.from_numpy(np.sqrt(a.numpy()))  # torch's own may be off by one in the last bit


def _layout(x: torch.Tensor) -> tuple[torch.dtype, int, int]:
    """Integer type of the same width, bits of the fraction, bias of the exponent."""
    return (torch.int64, 52, 1023) if x.dtype == torch.float64 else (torch.int32, 23, 127)


def _power_of_two(a: torch.Tensor) -> torch.Tensor:
    integer, fraction, bias = _layout(a)
    return ((a.to(integer) + bias) << fraction).view(a.dtype)


def _exponent(a: torch.Tensor) -> torch.Tensor:
    integer, fraction, bias = _layout(a)
    return (((a.view(integer) >> fraction) & (2 * bias + 1)) - bias).to(a.dtype)
