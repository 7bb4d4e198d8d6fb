"""Programs of expressions over chunks (csrc/ops/formula.h): the instructions are unrolled into the kernel.

The structure of a program is a constant of the kernel, so Triton compiles each structure once: 1 to 3 s for 100
instructions. Values stay in registers, and no instruction is decoded at run time. The numbers, masks, keys and vectors
in the slots are read from memory, so other values need no compilation.
"""

import functools

import triton.language as tl

from ..expr.operations import Op
from .deltas import load_addresses, load_coefficients, load_deltas, settle_results
from .elements import (
    CHUNK,
    F32,
    F64,
    FEW,
    INFINITY32,
    INFINITY64,
    NO_BASE,
    SLOWER,
    add_delta,
    bits_of,
    counters_of,
    device,
    is_finite,
    load,
    magnitude,
    magnitude_key,
    pointer,
    segment_of,
    settle,
    store,
)
from .geometry import kernel, run, shared, step
from .masks import lanes16, load_rule

ADD, SUB, MUL, DIV = map(tl.constexpr, map(int, (Op.ADD, Op.SUB, Op.MUL, Op.DIV)))
SQRT, ABS, NEG, MIN = map(tl.constexpr, map(int, (Op.SQRT, Op.ABS, Op.NEG, Op.MIN)))
MAX, LT, LE, EQ = map(tl.constexpr, map(int, (Op.MAX, Op.LT, Op.LE, Op.EQ)))
WHERE, POW2, EXPONENT, KEEP = map(tl.constexpr, map(int, (Op.WHERE, Op.POW2, Op.EXPONENT, Op.KEEP)))
DRAW, ROW, COLUMN, RANK = map(tl.constexpr, map(int, (Op.DRAW, Op.ROW, Op.COLUMN, Op.RANK)))
# Instructions. A longer program gets one loop over a chunk instead of two: its loads cost little beside its arithmetic.
LONG = 128


@device
def calculate(a, b, c, OP: tl.constexpr, FP64: tl.constexpr):
    """An instruction of operands alone."""
    fraction: tl.constexpr = 52 if FP64 else 23
    bias: tl.constexpr = 1023 if FP64 else 127
    if OP == ADD:
        return a + b
    elif OP == SUB:
        return a - b
    elif OP == MUL:
        return a * b
    elif OP == DIV:
        return a / b if FP64 else tl.div_rn(a, b)
    elif OP == SQRT:
        return tl.sqrt(a) if FP64 else tl.sqrt_rn(a)
    elif OP == ABS:
        return magnitude(a, FP64)
    elif OP == NEG:
        return (bits_of(a, FP64) ^ (-0x8000000000000000 if FP64 else -0x80000000)).to(a.dtype, bitcast=True)
    elif OP == MIN:
        return tl.where(a < b, a, b)
    elif OP == MAX:
        return tl.where(a > b, a, b)
    elif OP == LT:
        return (a < b).to(a.dtype)
    elif OP == LE:
        return (a <= b).to(a.dtype)
    elif OP == EQ:
        return (a == b).to(a.dtype)
    elif OP == WHERE:
        return tl.where(a != 0, b, c)
    elif OP == POW2:
        # The sum is exact and has a in its lowest bits; the shift drops all but the exponent.
        big: tl.constexpr = 6755399441055744.0 if FP64 else 12582912.0
        return (bits_of(a + (big + bias), FP64) << fraction).to(a.dtype, bitcast=True)
    else:
        tl.static_assert(OP == EXPONENT)
        return ((magnitude_key(a, FP64) >> fraction) - bias).to(a.dtype)


@device
def draw(key, index, start, STEP: tl.constexpr, MID_CALL: tl.constexpr):
    """16 random bits for each element of a step of the chunk that begins at flat index `index`."""
    call = (index + start) // 8
    if MID_CALL:
        lanes = lanes16(key, call + tl.arange(0, STEP // 4))
        return tl.gather(lanes, (index % 8).to(tl.int32) + tl.arange(0, STEP), 0)
    else:
        return lanes16(key, call + tl.arange(0, STEP // 8))


@device
def corner_of(words, index):
    """Row and column of flat index `index`; of a chunk that begins there, how much is in its first row and in others.

    A 64-bit division is a call: in a loop it would cost registers.
    """
    columns = tl.load(words)
    column = index % columns
    left, width = tl.minimum(columns - column, CHUNK), tl.minimum(columns, CHUNK)
    return index // columns, column, left.to(tl.int32), width.to(tl.int32)


@device
def within_rows(offset, corner):
    """Row and column of the elements at `offset` in a chunk that begins at `corner`."""
    first, column, left, width = corner
    # A 64-bit division for each element would cost as much as a long formula.
    beyond = tl.maximum(offset - left, 0)
    inside = offset < left
    rows = tl.where(inside, 0, beyond // width + 1)
    return first + rows, tl.where(inside, column + offset, (beyond % width).to(tl.int64))


@device
def load_entries(address, i, offset, length, FP64: tl.constexpr, MASKED: tl.constexpr):
    """Entries of a float64 vector, rounded to the compute type."""
    at = pointer(address, tl.float64) + i
    entries = tl.load(at, mask=offset < length, other=0.0) if MASKED else tl.load(at)
    return entries.to(tl.float64 if FP64 else tl.float32)


@device
def locate(a, start, offset, position, tables, OP: tl.constexpr, PAYLOAD: tl.constexpr, SIZES: tl.constexpr,
           FP64: tl.constexpr, MID_CALL: tl.constexpr, STEP: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    """An instruction that depends on where the elements are."""
    segment, index, begin, length, corner = position
    _constants, _kept, rules, words = tables
    if OP == KEEP:
        cut, threshold, ties, key = load_rule(rules, segment, PAYLOAD, index, SIZES[2], FP64)
        if cut < 0:
            # As `drop` has it, but a value may be any NaN.
            kept = magnitude_key(settle(a, False, FP64), FP64) >= threshold + (offset >= ties).to(threshold.dtype)
        else:
            kept = draw(key, index, start, STEP, MID_CALL) < cut
        return tl.where(kept, a, 0.0)
    elif OP == DRAW:
        return draw(tl.load(words + 2 + PAYLOAD), index, start, STEP, MID_CALL).to(tl.float64 if FP64 else tl.float32)
    elif OP == RANK:
        address = tl.load(words + 2 + SIZES[3] + SIZES[4] + PAYLOAD)
        return load(address, begin, offset, length, F64 if FP64 else F32, FP64, True, MASKED)
    else:
        rows, columns = within_rows(offset, corner)
        address = tl.load(words + 2 + SIZES[3] + PAYLOAD)
        return load_entries(address, rows if OP == ROW else columns, offset, length, FP64, MASKED)


@device
def evaluate(d, base, start, offset, position, tables, CODE: tl.constexpr, VALUES: tl.constexpr, SIZES: tl.constexpr,
             FP64: tl.constexpr, MID_CALL: tl.constexpr, STEP: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    """The values of a program for the deltas `d` of a step."""
    registers: tl.constexpr = SIZES[0]
    constants: tl.constexpr = SIZES[1]
    operands = d + (base,)  # noqa: RUF005 (no unpacking in Triton)
    for _ in tl.static_range(registers):
        operands = operands + (base,)  # noqa: RUF005
    for j in tl.static_range(constants):
        constant = tables[1][j] if constants <= FEW else tl.load(tables[0] + j).to(tl.float64 if FP64 else tl.float32)
        operands = operands + (tl.broadcast_to(constant, (STEP,)),)  # noqa: RUF005
    for i in tl.static_range(len(CODE)):
        if CODE[i][0] < KEEP:
            y = calculate(operands[CODE[i][2]], operands[CODE[i][3]], operands[CODE[i][4]], CODE[i][0], FP64)
        else:
            y = locate(operands[CODE[i][2]], start, offset, position, tables, CODE[i][0], CODE[i][5], SIZES, FP64,
                       MID_CALL, STEP, MASKED)  # fmt: skip
        operands = operands[: CODE[i][1]] + (y,) + operands[CODE[i][1] + 1 :]  # noqa: RUF005
    values = ()
    for m in tl.static_range(len(VALUES)):
        values = values + (operands[VALUES[m]],)  # noqa: RUF005
    return values


@device
def _step(start, sources, base_source, targets, position, tables, counters, INPUTS: tl.constexpr, BASE: tl.constexpr,
          OUT: tl.constexpr, CODE: tl.constexpr, VALUES: tl.constexpr, SIZES: tl.constexpr, COMBINE: tl.constexpr,
          AGREE: tl.constexpr, FP64: tl.constexpr, TO_ZERO: tl.constexpr, ALIGNED: tl.constexpr,
          COUNT: tl.constexpr, MID_CALL: tl.constexpr, STEP: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    """Writes the outputs of one step; returns the largest magnitude key of the deltas at each element."""
    _segment, _index, begin, length, _corner = position
    offset = start + tl.arange(0, STEP)
    d, base, top, sound = load_deltas(sources, base_source, begin, offset, length, counters, INPUTS, BASE, FP64,
                                      TO_ZERO, ALIGNED, COUNT, MASKED)  # fmt: skip
    values = evaluate(d, base, start, offset, position, tables, CODE, VALUES, SIZES, FP64, MID_CALL, STEP, MASKED)
    if AGREE:
        differ = tl.zeros_like(top)
        for k in tl.static_range(1, AGREE):
            differ |= bits_of(d[k], FP64) ^ bits_of(d[0], FP64)
    for m in tl.static_range(len(VALUES)):
        y = values[m]
        if not COMBINE:
            y = tl.where(is_finite(y, FP64), y, 0.0)
        elif BASE != NO_BASE:
            y = add_delta(base, y)
        elif AGREE:
            y = tl.where(differ == 0, d[0], y)
        if COMBINE:
            y, top = settle_results(y, base, top, sound, offset, length, counters + len(INPUTS) + 1, BASE, OUT, FP64,
                                    TO_ZERO, COUNT, MASKED)  # fmt: skip
        store(targets[m], begin, offset, length, y, OUT, FP64, ALIGNED, MASKED)
    return top


@kernel
def _kernel(segment_rows: tl.int64, chunk_map: tl.int64, numbers: tl.int64, rules: tl.int64, words: tl.int64,
            nonfinite: tl.int64, INPUTS: tl.constexpr, BASE: tl.constexpr, OUT: tl.constexpr, CODE: tl.constexpr,
            VALUES: tl.constexpr, SIZES: tl.constexpr, COMBINE: tl.constexpr, AGREE: tl.constexpr,
            FP64: tl.constexpr, TO_ZERO: tl.constexpr, ALIGNED: tl.constexpr, COUNT: tl.constexpr,
            MID_CALL: tl.constexpr, STEP: tl.constexpr, ONE_WAY: tl.constexpr):  # fmt: skip
    """SIZES: how many registers, constants, rules, keys, vectors and ranked inputs the program has.

    MID_CALL: what one call of Philox decides may be cut by the beginning of a segment.
    """
    models: tl.constexpr = len(INPUTS)
    outputs: tl.constexpr = len(VALUES)
    infinity: tl.constexpr = INFINITY64 if FP64 else INFINITY32
    segment, row, begin, length = segment_of(tl.program_id(0), segment_rows, chunk_map, 7 + models + outputs)
    base_source = tl.load(row + 6)
    sources = load_addresses(row, 7, models)
    targets = load_addresses(row, 7 + models, outputs)
    own_words = pointer(words, tl.int64) + segment * (2 + SIZES[3] + SIZES[4] + SIZES[5])
    index = tl.load(row + 1) + begin
    position = segment, index, begin, length, corner_of(own_words, index) if SIZES[4] else ()
    constants = pointer(numbers, tl.float64) + segment * SIZES[1]
    tables = constants, load_coefficients(constants, SIZES[1] if SIZES[1] <= FEW else 0, FP64), rules, own_words
    counters = counters_of(nonfinite, tl.load(row + 3), models)
    largest = tl.full((), infinity, tl.int64 if FP64 else tl.int32)
    if not ONE_WAY:  # noqa: SIM102 (at compile time, unlike what follows)
        if length == CHUNK:
            tops = tl.zeros((STEP,), tl.int64 if FP64 else tl.int32)
            for start in range(0, CHUNK, STEP):
                top = _step(start, sources, base_source, targets, position, tables, counters, INPUTS, BASE, OUT, CODE,
                            VALUES, SIZES, COMBINE, AGREE, FP64, TO_ZERO, ALIGNED, COUNT, MID_CALL, STEP,
                            False)  # fmt: skip
                tops = tl.maximum(tops, top)
            largest = tl.max(tops, axis=0)
    if largest >= infinity:
        slower: tl.constexpr = STEP // SLOWER
        start = 0
        while start < length:
            _step(start, sources, base_source, targets, position, tables, counters, INPUTS, BASE, OUT, CODE, VALUES,
                  SIZES, COMBINE, AGREE, FP64, TO_ZERO, ALIGNED, COUNT, MID_CALL, slower, True)  # fmt: skip
            start += slower


@functools.lru_cache(256)
def _with_ranked(code, ranked):
    """The code, the payload of a rank being the number of its input among those that are ranked."""
    return tuple((*row[:5], ranked.index(row[2]) if row[0] == RANK.value else row[5]) for row in code)


def launch(launch, code, combine, agree, nonfinite):
    program = code.program
    sizes = (program.constants, program.rules, program.keys, program.vectors, program.ranked)
    warps = 4  # registers differ much from program to program: small blocks fill more of them
    run(_kernel, (launch.chunks,), launch.segment_rows, launch.chunk_map, launch.numbers, launch.rules, launch.words,
        nonfinite, INPUTS=tuple(launch.inputs), OUT=launch.out, CODE=_with_ranked(program.code, program.ranked),
        VALUES=program.outputs, SIZES=(program.registers, *map(len, sizes)), COMBINE=bool(combine),
        AGREE=agree if combine and launch.base < 0 else 0,
        MID_CALL=not launch.at_calls and bool(program.rules or program.keys),
        STEP=step(launch, launch.models + 2 + program.registers // 8, warps), ONE_WAY=len(program.code) > LONG,
        warps=warps, **shared(launch, nonfinite))  # fmt: skip
