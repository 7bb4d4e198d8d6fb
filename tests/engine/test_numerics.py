"""Number formats: widening, rounding and digests, bit by bit, on every instruction set."""

import functools
import subprocess
import sys
import textwrap

import bit_oracles
import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_helpers import (
    DTYPES,
    ISAS,
    assert_same_bits,
    bits,
    buffer,
    changed,
    cpu,
    family,
    merge,
    native_file,
    operands,
    output,
    pool,
    reference,
    task,
    work,
)
from warpmerge import _core
from warpmerge.engine import loop as engine
from warpmerge.tasks import FileSink

HALVES = [torch.bfloat16, torch.float16]
PATTERNS = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)  # all of 16 bits


def convert(tensor, dtype, isa):
    """Through the kernels: one input with the coefficient 1, rounded to `dtype`."""
    result = torch.full(tensor.shape, 123.0, dtype=dtype)
    item = pool(isa).weighted_sum(operands([tensor], None, 1), 131072, [1.0], True, [output(result)])
    work(pool(isa), item)
    return result


def canonical(tensor):
    """Every NaN the positive quiet one with an empty payload."""
    return torch.where(tensor.isnan(), torch.full_like(tensor, float("nan")).abs(), tensor)


def assert_rounds_like(source, wanted, isa):
    assert_same_bits(convert(source, wanted.dtype, isa), canonical(wanted), isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", HALVES)
def test_widening_every_16_bit_pattern(dtype, isa):
    source = PATTERNS.view(dtype)
    assert_rounds_like(source, source.float(), isa)
    assert_rounds_like(source, source.double(), isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", HALVES)
def test_every_16_bit_pattern_survives(dtype, isa):
    """Widened and narrowed: itself, a NaN the canonical one."""
    source = PATTERNS.view(dtype)
    assert_rounds_like(source, source, isa)
    assert_rounds_like(source.double(), source, isa)


def between(dtype):
    """Around every finite number of a 16-bit type: itself and the midpoint to the next, and what lies just beside both.

    float64; the neighbours are as near as float32 has them, and so near that rounding to float32 first would lose them.
    """
    grid = PATTERNS.view(dtype).double()
    grid = grid[grid.isfinite()].abs().unique()
    largest = grid[-1]
    above = torch.cat([grid[1:], (2 * largest - grid[-2])[None]])  # where the next number would be
    places = torch.cat([grid, (grid + above) / 2, above[-1:]])
    near = torch.cat([places * (1 + sign * 2.0**-e) for e in (23, 29, 45, 52) for sign in (-1, 1)])
    everything = torch.cat([places, near, torch.tensor([float("inf"), float("nan")], dtype=torch.float64)])
    return torch.cat([everything, -everything])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", HALVES)
def test_rounding_to_16_bits(dtype, isa):
    """Ties, neighbours of ties, subnormals, overflow. From float64 in one step: torch itself rounds twice."""
    source = between(dtype)
    single = source.float()
    assert_rounds_like(single, oracles.rounded(single.double().numpy(), dtype), isa)
    assert_rounds_like(single, single.to(dtype), isa)
    assert_rounds_like(source, oracles.rounded(source.numpy(), dtype), isa)


def test_rounding_once_is_not_rounding_twice():
    """The case above is not empty: a number just above a tie that float32 takes for the tie."""
    source = torch.tensor([1 + 2.0**-8 + 2.0**-40, 1 + 2.0**-8 - 2.0**-40], dtype=torch.float64)
    for isa in ISAS:
        assert convert(source, torch.bfloat16, isa).tolist() == [1 + 2.0**-7, 1.0]
    assert source.float().to(torch.bfloat16).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("isa", ISAS)
def test_rounding_float64_to_float32(isa):
    generator = np.random.default_rng(0)
    raw = generator.integers(0, 2**64, 20_000, dtype=np.uint64).view(np.float64)  # mostly overflow or zero
    scaled = generator.standard_normal(20_000) * 2.0 ** generator.integers(-150, 128, 20_000)  # subnormals of float32
    ties = scaled.clip(-1e38, 1e38).astype(np.float32).astype(np.float64)
    ties = ties + np.spacing(np.abs(ties).astype(np.float32)).astype(np.float64) / 2
    source = torch.from_numpy(np.concatenate([raw, scaled, ties]))
    with np.errstate(over="ignore", invalid="ignore"):
        assert_rounds_like(source, torch.from_numpy(source.numpy().astype(np.float32)), isa)


# Negative and quiet with a payload, signalling, all ones.
NANS = {
    torch.float32: np.array([0xFFC0BEEF, 0x7F800001, 0x7FFFFFFF], np.uint32).view(np.float32),
    torch.float64: np.array([0xFFF800000000BEEF, 0x7FF0000000000001, 2**63 - 1], np.uint64).view(np.float64),
}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", NANS)
def test_every_nan_becomes_the_canonical_one(dtype, isa):
    source = torch.from_numpy(NANS[dtype].copy())
    for target, quiet in {torch.bfloat16: 0x7FC0, torch.float16: 0x7E00, torch.float32: 0x7FC00000}.items():
        assert bits(convert(source, target, isa)).tolist() == [quiet] * 3
    assert bits(convert(source, torch.float64, isa)).tolist() == [0x7FF8 << 48] * 3


@pytest.mark.parametrize("dtype", DTYPES)
def test_reference_rounds_the_same(dtype):
    """The readable backend, from float64."""
    source = between(torch.bfloat16)
    got = merge(reference(), "passthrough", [source], out_dtype=DTYPES[dtype], nonfinite="propagate")
    assert_same_bits(canonical(got), canonical(convert(source, DTYPES[dtype], ISAS[0])))


# --- the mode of the processor --------------------------------------------------------------------------------------

FLUSHING = """
    import sys, torch, warpmerge as wm
    when, backend = sys.argv[1:]
    base = torch.tensor([1e-40, -3e-45, 1.5e-38, 0.25, -0.0])
    models = [base.clone(), torch.tensor([3e-40, 1e-39, 4e-38, 0.5, 1e-39])]
    if when == "before":
        torch.set_flush_denormal(True)
    wm.merge_tensors(models, "linear", weight=1, backend=backend)  # makes the threads
    torch.set_flush_denormal(when != "never")
    merged = [
        wm.merge_tensors(models, "linear", weight=[0.5, 0.3], backend=backend),
        wm.merge_tensors(models, "task_arithmetic", base=base, weight=[0.5, 0.3], backend=backend),
        wm.merge_tensors(models, "ties", base=base, weight=[0.5, 0.3], density=0.7, backend=backend),
        wm.merge_tensors(models, "slerp", t=0.3, backend=backend),
    ]
    torch.set_flush_denormal(False)
    print([m.view(torch.int32).tolist() for m in merged])
"""


@functools.cache
def while_flushing(when, backend):
    command = [sys.executable, "-c", textwrap.dedent(FLUSHING), when, backend]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


@pytest.mark.parametrize("when", ["before", "after"])  # the threads were made: they inherit their maker's mode
def test_flushing_subnormals_in_the_caller_changes_nothing(when):
    """A program may flush for its own speed. (The reference computes in the caller's own mode.)"""
    assert while_flushing(when, "cpu") == while_flushing("never", "torch")


# --- digests --------------------------------------------------------------------------------------------------------


def digest_of(tensor, path, *, isa=ISAS[0], tile=512, method="linear", **options):
    """What the engine reports for a result that goes to a file, and the file's bytes."""
    made, _ = task(method, [tensor, tensor] if method == "linear" else [tensor], **options)
    seen = []
    with open(path, "w+b") as file:
        made = changed(made, sinks=[FileSink(native_file(file), 8)])
        engine.run([made], cpu(isa, 2, tile), lambda task, digest: seen.append(digest))
        file.seek(8)
        return seen[0], file.read()


@pytest.mark.parametrize("count", [0, 1, 3, 4, 511, 513, 9001])  # with and without a word that is not full
@pytest.mark.parametrize("dtype", DTYPES)
def test_digest_is_the_documented_one(dtype, count, tmp_path):
    tensor = family(dtype, 1, count)[0]
    wanted = bit_oracles.digest(bits(tensor).tobytes())
    for isa in ISAS:
        for tile in (512, 1024, 131072):
            for method in ("linear", "passthrough"):
                options = {"weight": 1} if method == "linear" else {}
                got, data = digest_of(tensor, tmp_path / "out", isa=isa, tile=tile, method=method, **options)
                assert data == bits(tensor).tobytes()
                assert got == wanted, (isa, tile, method)


def test_reference_has_the_same_digest(tmp_path):
    tensor = family("bf16", 1, 1031)[0]
    made, _ = task("linear", [tensor], weight=1)
    seen = []
    engine.run([made], reference(), lambda task, digest: seen.append(digest))
    assert seen == [bit_oracles.digest(bits(tensor).tobytes())]


@given(data=st.binary(min_size=0, max_size=200), other=st.binary(min_size=0, max_size=200))
@settings(deadline=None, max_examples=100)
def test_digest_of_bytes(data, other):
    """Different bytes, different digests: also zeros at the end, words that change places."""
    found = []
    for content in (data, other):
        copied = torch.frombuffer(bytearray(content or b"\0"), dtype=torch.uint8)
        item = pool(ISAS[0]).copy(place(copied), len(content), 1024, _core.Output(0))
        work(pool(ISAS[0]), item)
        found.append(item.digest)
        assert item.digest == bit_oracles.digest(content)
    assert (found[0] == found[1]) == (data == other)


def place(tensor):
    return _core.View(0, memory=buffer(tensor).address)
