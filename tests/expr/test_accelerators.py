"""Accelerators: what a backend has a faster way for has the bits of the expression that defines it."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerators import NUMBER, compare_many, compare_one, compare_votes, elections, masks
from device_budget import budget_for
from formula_helpers import adversarial, assert_same_tensors, carry_out
from kernel_helpers import ALL_DTYPES, ISAS, cpu
from triton_versions import VERSIONS, run
from warpmerge.expr.formula import Formula
from warpmerge.requests import KEEP_ALL, ElectAndSum, Map

EMULATED = importlib.util.find_spec("warpmerge._cuda_emulated") is not None


def on_cpu(isa):
    """In small tiles, by two threads."""
    return lambda _: contextlib.nullcontext(cpu(isa, 2, 512))


def on_device(tasks):
    from warpmerge.backends.gpu import cuda

    return contextlib.closing(cuda.create(threads=2, buffer_bytes=1 << 16))


def in_tiles(tasks):
    from warpmerge.backends.gpu import cuda

    budget = budget_for(tasks, chunks=min(len(tasks), 2))  # sums by rank of many tensors take whole ones
    return contextlib.closing(cuda.create(threads=2, buffer_bytes=1 << 16, budget=budget))


@pytest.fixture
def backends(monkeypatch):
    """Every instruction set, and the CUDA kernels on the emulated device where it was built, with and without tiles."""
    monkeypatch.setenv("WARPMERGE_CUDA_EMULATION", "1")
    yield [*map(on_cpu, ISAS), *((on_device, in_tiles) if EMULATED else ())]
    gc.collect()


@pytest.mark.parametrize("dtype", ALL_DTYPES)
def test_bits_are_those_of_the_expression(dtype, backends):
    compare_many(backends, dtype)


def test_full_chunks(backends):
    for number in range(NUMBER):
        compare_one(backends, number)


def test_where_votes_cancel_are_zero_or_not_numbers(backends):
    compare_votes(backends)


@pytest.mark.parametrize("version", VERSIONS)
def test_triton_in_its_interpreter(version):
    """The same by the same functions, in a process of its own."""
    *failures, last = run(version, Path(__file__).parent / "triton_accelerators.py", interpret=True)
    assert not failures, "\n".join(failures)
    assert last.startswith(f"{NUMBER + 2} cases with triton")


def test_the_expression_is_the_definition():
    """Written out for a few elements, by hand."""
    d = [np.array(x) for x in ([3.0, 1.0, -1.0, 0.0], [-1.0, 1.0, 1.0, 0.0], [-1.0, -3.0, 0.0, 0.0])]
    tensors = [torch.from_numpy(x) for x in d]
    base = torch.zeros(4, dtype=torch.float64)
    request = ElectAndSum((0.5, 1.0, 2.0), (KEEP_ALL,) * 3, (1.0,) * 3, (0.5, 1.0, 2.0), 2.0, elect=True)
    # Votes: 1, -1, 0, 0. Those who agree: model 0; model 2; model 1; none.
    wanted = [2 * 0.5 * 3 / 0.5, 2 * 2 * -3 / 2, 2 * 1 * 1 / 1, 0.0]
    for isa, r in itertools.product(ISAS, (request, request.as_map(3))):
        assert carry_out(cpu(isa), r, tensors, base)[2][0].tolist() == wanted


def test_formulas_of_several_values_are_what_their_values_are():
    base, tensors = adversarial("fp32", 3, 319)
    both = [request.as_map(3).formula.values[0] for request in itertools.islice(elections(3, masks(False)), 2)]
    joint = carry_out(cpu(), Map(Formula(both), True, nan_of=None), tensors, base, outputs=2)[2]
    alone = [carry_out(cpu(), Map(Formula((v,)), True, nan_of=None), tensors, base)[2][0] for v in both]
    assert_same_tensors(joint, alone, "")
