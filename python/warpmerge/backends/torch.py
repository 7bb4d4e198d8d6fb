"""The reference: every kernel in plain PyTorch, written to be read. It defines what the compiled kernels compute.

Whole tensors are processed at once, so memory is bounded by a few copies of the largest one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..dtypes import DType
from ..formula import Op
from ..ops import (
    Apply,
    Consensus,
    Copy,
    Gram,
    GramResult,
    Histogram,
    HistogramResult,
    KeepDrawn,
    Moments,
    MomentsResult,
    Rows,
    Select,
    Selection,
    WeightedSum,
    Whole,
)
from ..program import Program
from ..random import mix64
from ..tasks import Buffer, Outcome, TensorTask, Work

LANES, ROWS = 256, 16
BLOCK = LANES * ROWS
HISTOGRAM_BITS = 16
_MASK32 = 0xFFFFFFFF


class TorchBackend:
    name = "torch"

    def launch(self, work: list[Work]) -> _Done:
        return _Done([_carry_out(task, request) for task, request in work])

    def cancel(self) -> None: ...

    def close(self) -> None: ...


class _Done:
    def __init__(self, outcomes: list[Outcome]) -> None:
        self._outcomes = outcomes

    def wait(self) -> list[Outcome]:
        return self._outcomes


def _carry_out(task: TensorTask, request: Any) -> Outcome:
    if isinstance(request, Copy):
        return Outcome(_write(task, np.frombuffer(task.inputs[request.index].read(), np.uint8)))
    if isinstance(request, Whole):
        from .whole import carry_out

        return carry_out(task, request)
    x, base, nonfinite = _operands(task, request.relative)
    count = task.info.count
    if isinstance(request, WeightedSum):
        outputs = [narrow(weighted_sum(x, base, request, m), task.out_dtype) for m in range(len(task.sinks))]
        digests = [_write(task, y, m) for m, y in enumerate(outputs)]
        return Outcome(digests[0], nonfinite)
    if isinstance(request, Consensus):
        return Outcome(_write(task, narrow(consensus(x, base, request), task.out_dtype)), nonfinite)
    if isinstance(request, Apply):
        program = request.formula.program(len(x), task.wide)
        values = evaluate(program, x, base)
        values = [_finish(v, x, base, request.agree) for v in values]
        digests = [_write(task, narrow(v, task.out_dtype), m) for m, v in enumerate(values)]
        return Outcome(digests[0], nonfinite)
    formula = getattr(request, "of", None)
    if formula is not None:
        x = evaluate(formula.program(len(x), task.wide), x, base)
        x = [torch.where(torch.isfinite(v), v, torch.zeros_like(v)) for v in x]
    if isinstance(request, Rows):
        return Outcome(rows(x, formula.columns, request.largest), nonfinite)
    if isinstance(request, Histogram):
        return Outcome([histogram(d, *i) for d, i in zip(x, request.intervals, strict=True)], nonfinite)
    if isinstance(request, Select):
        chosen = [
            select(d, k, request.keep_all_ties) if k else Selection() for d, k in zip(x, request.counts, strict=True)
        ]
        return Outcome(chosen, nonfinite)
    # Sums are taken over the finite elements.
    x = [torch.where(torch.isfinite(d), d, torch.zeros_like(d)) for d in x]
    if isinstance(request, Moments):
        return Outcome([moments(d, k, request.only_l1) for d, k in zip(x, request.keep, strict=True)], nonfinite)
    assert isinstance(request, Gram) and count >= 0
    return Outcome(gram(x), nonfinite)


# --- operands -------------------------------------------------------------------------------------------------------


def _operands(task: TensorTask, relative: bool) -> tuple[list[torch.Tensor], torch.Tensor | None, tuple[int, ...]]:
    """Inputs (deltas if `relative`) and base, flat and in the compute type, and how many elements are not finite."""
    compute = torch.float64 if task.wide else torch.float32
    x = [_load(b).to(compute) for b in task.inputs]
    base = _load(task.base).to(compute) if relative and task.base else None
    counts = [int((~torch.isfinite(t)).sum()) for t in [*x, *([base] if base is not None else [])]]
    if base is not None:
        x = [t - base for t in x]
    if task.values["nonfinite"] == "base":
        x = [torch.where(torch.isfinite(d), d, torch.zeros_like(d)) for d in x]
    counts += [0] * (len(x) + 1 - len(counts))
    return x, base, tuple(counts) if any(counts) else ()


def _load(buffer: Buffer) -> torch.Tensor:
    data = torch.from_numpy(np.frombuffer(buffer.read(), np.uint8).copy())
    return data.view(getattr(torch, buffer.dtype.name)) if data.numel() else data.to(getattr(torch, buffer.dtype.name))


def narrow(y: torch.Tensor, dtype: DType) -> torch.Tensor:
    """Rounds once, to nearest even; every NaN becomes the canonical one."""
    wanted = getattr(torch, dtype.name)
    if y.dtype == torch.float64 and wanted in (torch.float16, torch.bfloat16):
        y = _round_to_odd(y)
    result = y.to(wanted)
    return torch.where(torch.isnan(result), torch.full_like(result, float("nan")), result)


def _round_to_odd(y: torch.Tensor) -> torch.Tensor:
    """float64 to float32 such that a further rounding to 16 bits is the correct one: inexact values end in a 1 bit."""
    nearest = y.to(torch.float32)
    bits = nearest.view(torch.int32)
    bits = torch.where(nearest.double().abs() > y.abs(), bits - 1, bits) | 1
    return torch.where((nearest.double() == y) | torch.isnan(y), nearest, bits.view(torch.float32))


def _write(task: TensorTask, data: Any, output: int = 0) -> int:
    if isinstance(data, torch.Tensor):
        data = data.contiguous().view(torch.uint8).numpy() if data.numel() else np.empty(0, np.uint8)
    task.sinks[output].write(memoryview(data).cast("B"))
    return digest(data)


def digest(data: np.ndarray) -> int:
    """csrc/ops/digest.h for (m,) uint8."""
    padded = np.zeros(-(-data.size // 8) * 8, np.uint8)
    padded[: data.size] = data
    words = padded.view("<u8")
    x = words + np.arange(1, words.size + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    total = int(x.sum(dtype=np.uint64)) + mix64(~data.size & (2**64 - 1))
    return total & (2**64 - 1)


# --- combine --------------------------------------------------------------------------------------------------------


def weighted_sum(x: list[torch.Tensor], base: torch.Tensor | None, request: WeightedSum, output: int) -> torch.Tensor:
    coefficients = request.coefficients[output * len(x) : (output + 1) * len(x)]
    total = x[0] * _scalar(coefficients[0], x[0])
    for d, c in zip(x[1:], coefficients[1:], strict=True):
        total = total + d * _scalar(c, d)
    if base is not None:
        return add_delta(base, total)
    return torch.where(_all_same(x), x[0], total) if request.agree else total


def consensus(x: list[torch.Tensor], base: torch.Tensor, request: Consensus) -> torch.Tensor:
    kept = [torch.where(keep_mask(d, k), d, torch.zeros_like(d)) for d, k in zip(x, request.keep, strict=True)]
    zero = torch.zeros_like(base)
    votes, total, divisor = zero, zero, zero
    ballots = [d * _scalar(b, d) for d, b in zip(kept, request.ballot, strict=False)] if request.elect else []
    for ballot in ballots:
        votes = votes + ballot
    for k, (d, value) in enumerate(zip(kept, request.value, strict=True)):
        term = d * _scalar(value, d)
        if request.elect:
            agrees = torch.where(votes < 0, ballots[k] < 0, ballots[k] > 0)
            term = torch.where(agrees, term, zero)
            divisor = divisor + torch.where(agrees, _scalar(request.divisor[k], d), zero)
        total = total + term
    divisor = torch.where(divisor == 0, torch.ones_like(divisor), divisor)
    merged = total / divisor * _scalar(request.lambda_, base)
    return add_delta(base, torch.where(torch.isnan(votes), votes, merged))


def add_delta(base: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    return torch.where(delta == 0, base, base + delta)


def _scalar(value: float, like: torch.Tensor) -> torch.Tensor:
    """A coefficient rounded once from float64 to the compute type."""
    return torch.tensor(value, dtype=torch.float64).to(like.dtype)


# --- formulas -------------------------------------------------------------------------------------------------------


def evaluate(program: Program, x: list[torch.Tensor], base: torch.Tensor | None) -> list[torch.Tensor]:
    """The values of a program for (n,) inputs."""
    zero, one = torch.zeros_like(x[0]), torch.ones_like(x[0])
    operands: dict[int, torch.Tensor] = dict(enumerate(x))
    operands[len(x)] = zero if base is None else base
    for j, constant in enumerate(program.constants):
        operands[len(x) + 1 + program.registers + j] = _scalar(constant, zero).expand_as(zero)
    index = torch.arange(len(zero))
    for op, target, *abc, payload in program.code:
        a, b, c = (operands.get(number, zero) for number in abc)
        match Op(op):
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
            case Op.SELECT:
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
        operands[target] = y
    return [operands[number] for number in program.outputs]


def _finish(value: torch.Tensor, x: list[torch.Tensor], base: torch.Tensor | None, agree: int) -> torch.Tensor:
    if base is not None:
        return add_delta(base, value)
    if agree:
        return torch.where(_all_same(x[:agree]), x[0], value)
    return value


def _all_same(x: list[torch.Tensor]) -> torch.Tensor:
    integer = torch.int64 if x[0].dtype == torch.float64 else torch.int32
    same = torch.ones_like(x[0], dtype=torch.bool)
    first = _canonical(x[0])
    for d in x[1:]:
        same &= _canonical(d).view(integer) == first.view(integer)
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


def row_ranks(d: torch.Tensor, columns: int) -> torch.Tensor:
    """Of each element's magnitude among those of its row, equal ones by column."""
    order = torch.argsort(magnitude_keys(d).view(-1, columns), dim=1, stable=True)
    ranks = torch.empty_like(order)
    ranks.scatter_(1, order, torch.arange(columns).expand_as(order))
    return ranks.flatten().to(d.dtype)


# --- sparsification -------------------------------------------------------------------------------------------------


def _canonical(d: torch.Tensor) -> torch.Tensor:
    return torch.where(torch.isnan(d), torch.full_like(d, float("nan")), d)


def magnitude_keys(d: torch.Tensor) -> torch.Tensor:
    """(n,) int64: the bit pattern of |d|, with every NaN the canonical one."""
    return _canonical(d).abs().view(torch.int64 if d.dtype == torch.float64 else torch.int32).to(torch.int64)


def keep_mask(d: torch.Tensor, keep: Any) -> torch.Tensor:
    if isinstance(keep, KeepDrawn):
        return philox_lanes(keep.key, d.numel()) < keep.cut
    if keep.threshold > 2**63 - 1:
        return torch.zeros(d.shape, dtype=torch.bool)
    keys = magnitude_keys(d)
    index = torch.arange(d.numel())
    return (keys > keep.threshold) | ((keys == keep.threshold) & (index < keep.tie_end))


def philox_lanes(key: int, count: int) -> torch.Tensor:
    """(count,) int64: 16 bits per element, eight per call of Philox4x32-10 with counter (element // 8, 0, 0)."""
    call = torch.arange(-(-count // 8), dtype=torch.int64)
    c0, c1 = call & _MASK32, call >> 32
    c2 = c3 = torch.zeros_like(call)
    k0, k1 = key & _MASK32, key >> 32
    for _ in range(10):
        a, b = c0 * 0xD2511F53, c2 * 0xCD9E8D57  # wraps at 64 bits, which leaves the bits right
        c0 = ((b >> 32) & _MASK32) ^ c1 ^ k0
        c2 = ((a >> 32) & _MASK32) ^ c3 ^ k1
        c1, c3 = b & _MASK32, a & _MASK32
        k0, k1 = (k0 + 0x9E3779B9) & _MASK32, (k1 + 0xBB67AE85) & _MASK32
    halves = [h for word in (c0, c1, c2, c3) for h in (word & 0xFFFF, word >> 16)]
    return torch.stack(halves, dim=1).flatten()[:count]


def select(d: torch.Tensor, count: int, keep_all_ties: bool) -> Selection:
    """The count-th largest magnitude of (n,) d, and the ties at it that complete the count, lowest index first."""
    keys = magnitude_keys(d)
    threshold = int(torch.kthvalue(keys, d.numel() - count + 1).values)
    above = int((keys > threshold).sum())
    ties = torch.nonzero(keys == threshold).flatten()
    missing = count - above
    exact = not keep_all_ties and threshold != 0 and missing < len(ties)
    return (
        Selection(threshold, int(ties[missing - 1]) + 1, above, len(ties))
        if exact
        else Selection(threshold, above=above, ties=len(ties))
    )


# --- reductions -----------------------------------------------------------------------------------------------------


def fixed_sum(terms: torch.Tensor) -> float:
    """Sum of (n,) terms in the one documented order (csrc/ops/reduce.h)."""
    blocks = -(-terms.numel() // BLOCK)
    if blocks == 0:
        return 0.0
    padded = torch.zeros(blocks * BLOCK, dtype=terms.dtype)
    padded[: terms.numel()] = terms
    matrix = padded.view(blocks, ROWS, LANES)
    lanes = torch.zeros(blocks, LANES, dtype=terms.dtype)
    for row in range(ROWS):
        lanes = lanes + matrix[:, row]
    while lanes.shape[1] > 1:
        lanes = lanes[:, 0::2] + lanes[:, 1::2]
    partial = lanes[:, 0].double()
    while len(partial) > 1:
        odd = partial[len(partial) // 2 * 2 :]
        partial = torch.cat([partial[0 : len(partial) - len(odd) : 2] + partial[1::2], odd])
    return float(partial[0])


def moments(d: torch.Tensor, keep: Any, only_l1: bool = False) -> MomentsResult:
    kept = torch.where(keep_mask(d, keep), d, torch.zeros_like(d))
    if only_l1:
        return MomentsResult(fixed_sum(d.abs()), 0.0, fixed_sum(kept.abs()), 0.0, 0.0, 0, 0)
    return MomentsResult(
        sum_abs=fixed_sum(d.abs()),
        sum_sq=fixed_sum(d * d),
        kept_abs=fixed_sum(kept.abs()),
        min=float(d.min()) + 0.0 if d.numel() else 0.0,
        max=float(d.max()) + 0.0 if d.numel() else 0.0,
        nonzero=int((d != 0).sum()),
        kept=int((kept != 0).sum()),
    )


def gram(x: list[torch.Tensor]) -> GramResult:
    flat = [fixed_sum(v.double() ** 2) for v in x]
    flat += [fixed_sum((x[i].double() - x[k].double()) ** 2) for i in range(len(x)) for k in range(i + 1, len(x))]
    return GramResult.unpack(flat, len(x))


def histogram(d: torch.Tensor, low: int, high: int) -> HistogramResult:
    keys = magnitude_keys(d)
    shift = max(0, (high - low).bit_length() - HISTOGRAM_BITS)
    inside = keys[(keys >= low) & (keys <= high)]
    bins = torch.bincount((inside - low) >> shift, minlength=1 << HISTOGRAM_BITS)
    return HistogramResult(int((keys > high).sum()), shift, bins.numpy())


def rows(values: list[torch.Tensor], columns: int, largest: bool) -> np.ndarray:
    """(values, rows) float64: a row's blocks of 4096 columns as in `fixed_sum`, but in float64 throughout."""
    result = []
    for v in values:
        matrix = v.double().view(-1, columns)
        result.append([float(row.max()) + 0.0 if largest else fixed_sum(row) for row in matrix])
    return np.array(result, np.float64).reshape(len(values), -1)


def create(threads: int | None = None, tile: int | None = None, device: str = "cpu") -> TorchBackend:
    return TorchBackend()
