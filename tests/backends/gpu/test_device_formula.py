"""Formulas by the CUDA kernels on the emulated device: the reference's bits, wherever the operands are."""

import numpy as np
import pytest
import torch
from device_cases import IN_PLACE, PLACES, TILED, Case, carry_out, compare, place
from device_modes import FIXTURES, MODES, emulated
from formula_helpers import (
    KEY,
    adversarial,
    assert_same_tensors,
    everything,
    formula,
    is_wide,
    random_values,
    threshold,
)
from kernel_helpers import ALL_DTYPES, family, reference, unaligned
from warpmerge.backends.gpu.code import LAST, NONE, file_bytes, packed
from warpmerge.backends.gpu.tables import BLOCK, CHUNK
from warpmerge.errors import MergeError
from warpmerge.expr import expression as f
from warpmerge.requests import Gram, Map, RandomMask, TensorFunction, TopKMask, WrittenFunction

(emulation,) = FIXTURES


@pytest.mark.parametrize("dtype", ALL_DTYPES)
def test_every_instruction(dtype):
    cases = []
    for on_deltas, count in [(True, 1283), (False, CHUNK + 77)]:
        base, tensors = adversarial(dtype, 2, count)
        keys = [threshold(tensors, is_wide(dtype)), 0x7FC00000, 0x7FF8 << 48]
        values = everything(2, columns=count, rows=1, keys=keys)
        out = torch.float64 if is_wide(dtype) else torch.float32
        request = Map(formula(values, count), on_deltas)
        cases.append(Case(request, tensors, base if on_deltas else None, outputs=len(values), out_dtype=out))
    compare(cases, ["resident"])


@pytest.mark.parametrize("mode", [*MODES, IN_PLACE])
def test_random_programs(mode):
    cases = []
    for seed, dtype in enumerate(ALL_DTYPES * 2):
        models, count = (1, 3, 5)[seed % 3], (999, CHUNK + 41)[seed % 2]
        base, tensors = (adversarial if seed % 2 else family)(dtype, models, count, seed=seed)
        values = random_values(seed, models, outputs=2)
        policy = ("propagate", "base", "error")[seed % 3]
        if seed % 4 == 1:
            base, *tensors = map(unaligned, (base, *tensors))
        for on_deltas in (True, False):
            cases.append(
                Case(Map(formula(values), on_deltas), tensors, base if on_deltas else None, outputs=2, nonfinite=policy)
            )
    compare(cases, [mode])


@pytest.mark.parametrize("agree", [0, 1, 3])
def test_inputs_that_agree_stay(agree):
    cases = []
    for dtype in ("fp16", "fp64"):
        _, tensors = adversarial(dtype, 3, 1283)
        tensors[1][::2] = tensors[0][::2]
        tensors[2][::3] = tensors[0][::3]
        tensors[0][:2] = torch.tensor([0.0, -0.0])
        tensors[1][:2] = torch.tensor([-0.0, -0.0])
        values = [(f.delta(0) + f.delta(1) + f.delta(2)) / 3, f.wrap(1.5)]
        cases.append(Case(Map(formula(values), False, agree), tensors, outputs=2))
    compare(cases)


@pytest.mark.parametrize("mode", PLACES)
def test_ties_end_anywhere(mode):
    """Within groups, and at the ends of blocks, chunks and segments."""
    base, tensors = family("bf16", 2, TILED)
    limit = threshold([tensors[0].float() - base.float()], False)
    cases = []
    for tie_end in [0, 1, 4095, BLOCK, CHUNK - 1, CHUNK, CHUNK + 3, 2 * CHUNK, 2 * CHUNK + 4096, TILED]:
        values = [f.masked(f.delta(0), TopKMask(limit, tie_end)), f.masked(f.delta(0) * 1.0, TopKMask(limit, tie_end))]
        cases.append(Case(Map(formula(values), True), tensors, base, outputs=2))
    compare(cases, [mode])


@pytest.mark.parametrize("shape", [(0,), (), (1,), (3, 0), (2, 3, 5)])
def test_shapes(shape):
    base, tensors = family("bf16", 2, shape)
    columns = shape[-1] if shape else 1
    rows = base.numel() // columns if columns else 0
    values = [f.delta(0) + f.row(np.ones(rows)) * f.column(np.ones(columns)) * f.draw(KEY)]
    compare([Case(Map(formula(values, columns), True), tensors, base)], [*PLACES, IN_PLACE])


@pytest.mark.parametrize("columns", [1, 7, 257, 5000, 40_000])
def test_vectors_of_rows_and_columns(columns):
    rows = max(1, 50_000 // columns)
    generator = np.random.default_rng(columns)
    cases = []
    for dtype in ("bf16", "fp64"):
        base, tensors = family(dtype, 2, rows * columns)
        by_row, by_column = generator.standard_normal(rows), generator.standard_normal(columns)
        values = [f.delta(0) * f.row(by_row) + f.column(by_column), f.row(by_column[:1].repeat(rows))]
        cases.append(Case(Map(formula(values, columns), True), tensors, base, outputs=2))
    compare(cases)


@pytest.mark.parametrize("size", [("fp32", 130), ("fp32", 900), ("fp64", 60), ("fp64", 500)])
def test_programs_with_many_operands(size):
    """For one element a thread, and with the operands in global memory."""
    dtype, many = size
    base, tensors = family(dtype, 2, 2061)
    terms = [f.delta(k % 2) * (0.1 + k) for k in range(many)]
    value = f.wrap(0.0)
    for k in range(many):  # every term lives until the last one is there
        value = value + terms[-1 - k] * terms[k]
    compiled = formula([value]).program(2, is_wide(dtype))
    assert compiled.registers >= many // 2
    assert (file_bytes(compiled, is_wide(dtype)) > 0) == (many >= 500)
    compare([Case(Map(formula([value]), True), tensors, base)], ["resident", "tiled, late"])


def test_many_inputs():
    base, tensors = family("bf16", 70, 5000)
    ordered = [f.delta(k) for k in range(70)]
    for k in range(69):
        ordered[k], ordered[k + 1] = f.minimum(ordered[k], ordered[k + 1]), f.maximum(ordered[k], ordered[k + 1])
    compare([Case(Map(formula([ordered[-1], ordered[0]]), True), tensors, base, outputs=2)], ["resident"])


def test_the_longest_program():
    base, tensors = family("bf16", 1, 99)
    value = f.delta(0)
    for k in range(4096 // 2):
        value = (value + (k + 1) / 7) * 0.5
    compare([Case(Map(formula([value]), True), tensors, base)], ["resident"])


def test_packed_programs_leave_out_what_only_the_next_instruction_reads():
    program = formula([f.sqrt(abs(f.delta(0) - 1.0)) + f.delta(1)]).program(2, False)
    rows = packed(program).view(np.uint16)
    targets, first = rows[:-1, 1].tolist(), rows[:-1, 2].tolist()
    assert targets[:-1] == [NONE] * 3 and targets[-1] == program.outputs[0] == rows[-1, 0]
    assert first == [0, LAST, LAST, LAST]


def test_tensors_of_one_structure_share_launches():
    """Constants, rules, keys and vectors differ from tensor to tensor."""
    base, tensors = family("bf16", 2, 700)
    cases = []
    for i in range(50):
        kept = f.masked(f.delta(0) * (i + 0.5), TopKMask(120 << 23, i))
        values = [
            kept + f.column(np.full(7, i)) * f.draw(KEY + i) + f.masked(f.delta(1), RandomMask(KEY - i, 900 * i + 1))
        ]
        cases.append(Case(Map(formula(values, 7), True), tensors, base))
    with place("resident", cases) as backend:
        before = backend.runtime.device.launches
        _, results = carry_out(backend, cases)
        assert backend.runtime.device.launches == before + 1
    for one, other in zip(results, carry_out(reference(), cases)[1], strict=True):
        assert_same_tensors(one, other, "")


def test_vectors_that_do_not_fit_are_refused():
    base, tensors = family("bf16", 2, 12)
    for message, refused in {
        "needs their length": formula([f.row(np.ones(3))]),
        "each column, 4": formula([f.column(np.ones(3))], 4),
    }.items():
        case = Case(Map(refused, True), tensors, base)
        with place("resident", [case]) as backend, pytest.raises(MergeError, match=message):
            carry_out(backend, [case])


# --- whole tensors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [*PLACES, IN_PLACE])
def test_whole_tensors(mode):
    """Among requests of other kinds, as a measurement and as what combines."""
    base, tensors = family("bf16", 2, (64, 300))
    mean = WrittenFunction(lambda x, b: (x[0] + x[1]) / 2 + 0 * b)
    applied = Map(formula([(f.delta(0) + f.delta(1)) / 2]), True)
    cases = [
        Case(applied, tensors, base),
        Case(TensorFunction(lambda x, b: [float(t.sum()) for t in (*x, b)]), tensors, base),
        Case(Gram(on_deltas=True), tensors, base),
    ]
    compare(cases, [mode])
    case = Case(applied, tensors, base)
    with place(mode, [case]) as backend:
        made, [result] = case.prepared(mode == IN_PLACE)
        for request in (Gram(on_deltas=True), TensorFunction(lambda x, b: None), mean):
            [outcome] = backend.launch([(made, request)]).wait()
        [wanted], [[expected]] = carry_out(reference(), [case])
    assert_same_tensors([result], [expected], mode)
    assert mode == IN_PLACE or outcome.value == wanted.value


# --- the native module ----------------------------------------------------------------------------------------------


def test_programs_of_other_tensors_are_refused():
    gpu = emulated.Device(0)
    shape = {"segments": 0, "chunks": 0, "models": 2, "outputs": 1, "inputs": [0, 0], "base": -1, "out": 0}
    launch = emulated.KernelLaunch(fp64=False, policy=1, aligned=True, segment_rows=0, chunk_map=0, **shape)
    sizes = {"code": 0, "instructions": 0, "constants": 0, "rules": 0, "keys": 0, "vectors": 0, "ranks": 0}
    for operands, values in [(2, 1), (3, 2)]:
        code = emulated.KernelProgram(operands=operands, values=values, **sizes)
        with pytest.raises(RuntimeError, match="not one for the tensors"):
            gpu.formula(gpu.stream(), launch, code, True, 0, 0)
    many = emulated.KernelProgram(operands=1000, values=1, **sizes)
    with pytest.raises(RuntimeError, match="too little memory for its operands"):
        gpu.formula(gpu.stream(), launch, many, True, 0, 0)
    with pytest.raises(RuntimeError, match="no such input"):
        gpu.ranks(gpu.stream(), launch, many, 0, 0, 5)
    with pytest.raises(ValueError, match="no negative sizes"):
        emulated.KernelProgram(operands=-1, values=1, **sizes)
    with pytest.raises(ValueError, match="at most 65534 operands"):
        emulated.KernelProgram(operands=2**16, values=1, **sizes)
