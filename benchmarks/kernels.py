"""One kernel on operands in memory, against memcpy of as many bytes and against the plain PyTorch backend.

The operands are several times the last-level cache. Bytes are counted by hand: what the kernel must read and write
once. The roof is memcpy of the same total (half of it read, half written), by as many threads, in turn with the
kernel.
"""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from warpmerge import _core
from warpmerge.backends.cpu.backend import CpuBackend
from warpmerge.backends.reference.backend import TorchBackend
from warpmerge.requests import Combine, HistogramResult
from warpmerge.tasks import Request, TensorTask
from warpmerge.threads import thread_count

from . import operands
from .figures import rates
from .operands import DTYPES, carry_out, random_model, same_bits

COUNT = 32 << 20  # elements: 64 MiB of bf16 per operand
CHECKED = 300_001  # elements compared with the reference before timing: whole blocks, and a rest
REFERENCE_COUNT = 4 << 20  # the reference is timed on fewer; its intermediate tensors are float32
COPY_BYTES = 256 << 20
COPY_BLOCK = 512 << 10
ROUNDS = 7
REFERENCE_ROUNDS = 3

ISAS = _core.isas()
THREADS = thread_count()


@dataclass(frozen=True)
class Case:
    """A kernel's operands and what carries it out. `isa` empty: the best one; `torch`: the reference."""

    dtype: str = "bf16"
    models: int = 3
    isa: str = ""
    threads: int = THREADS
    what: str = ""

    def __str__(self) -> str:
        named = [self.what, self.dtype, f"{self.models}-models", self.isa, f"{self.threads}-threads"]
        return "-".join(filter(None, named)).replace(" ", "-")


def cases(*more: Case, what: str = "") -> Any:
    """What a kernel is measured on: bf16, one thread, each instruction set, fp32, `more`, and the reference."""
    threads = [Case(what=what, threads=1)] if THREADS > 1 else []
    others = [Case(what=what, isa=isa) for isa in ISAS[1:]]
    return some_cases(Case(what=what), *threads, *others, Case("fp32", what=what), *more, reference(what=what))


def some_cases(*listed: Case) -> Any:
    return pytest.mark.parametrize("case", listed, ids=str)


def reference(**more: Any) -> Case:
    return Case(isa="torch", threads=torch.get_num_threads(), **more)


# --- operands -------------------------------------------------------------------------------------------------------


@cache
def operand(dtype: str, index: int) -> torch.Tensor:
    return random_model(COUNT, index, DTYPES[dtype])


@cache
def result(dtype: str) -> torch.Tensor:
    return torch.zeros(COUNT, dtype=DTYPES[dtype])


def make_task(case: Case, *, base: bool, count: int, out: torch.Tensor | None = None) -> TensorTask:
    """The first `count` elements of the operands."""
    first, *inputs = (operand(case.dtype, k)[:count] if k or base else None for k in range(case.models + 1))
    return operands.make_task(inputs, first, result(case.dtype)[:count] if out is None else out)


def moved_bytes(case: Case, request: Request, count: int) -> int:
    """Each input once, the base where deltas are taken, the output where there is one."""
    operands = case.models + request.on_deltas + isinstance(request, Combine)
    return operands * count * DTYPES[case.dtype].itemsize


# --- who carries it out ---------------------------------------------------------------------------------------------


@cache
def native(threads: int, isa: str) -> CpuBackend:
    return CpuBackend(threads, isa=isa or ISAS[0])


@cache
def _copy_buffers() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.full((COPY_BYTES,), 1, dtype=torch.uint8), torch.full((COPY_BYTES,), 2, dtype=torch.uint8)


@cache
def _copiers(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)


def memcpy_seconds(nbytes: int, threads: int) -> float:
    """Time of memcpy that reads and writes `nbytes` in all, in blocks; ctypes lets go of the GIL during each."""
    source, target = (buffer.data_ptr() for buffer in _copy_buffers())
    blocks = nbytes // 2 // COPY_BLOCK

    def copy(first: int) -> None:
        for block in range(first, blocks, threads):
            offset = block * COPY_BLOCK % COPY_BYTES
            ctypes.memmove(target + offset, source + offset, COPY_BLOCK)

    start = time.perf_counter()
    list(_copiers(threads).map(copy, range(threads)))
    return (time.perf_counter() - start) * (nbytes / 2) / (blocks * COPY_BLOCK)


# --- measuring ------------------------------------------------------------------------------------------------------


def check(case: Case, request: Request, backend: Any) -> None:
    """The same numbers and the same bits as the reference, on the first elements."""
    outputs = [torch.full((CHECKED,), float(k), dtype=DTYPES[case.dtype]) for k in range(2)]
    tasks = [make_task(case, base=request.on_deltas, count=CHECKED, out=out) for out in outputs]
    got, wanted = carry_out(backend, tasks[0], request), carry_out(TorchBackend(), tasks[1], request)
    if isinstance(request, Combine):
        assert same_bits(*outputs)
    else:
        assert got.nonfinite == wanted.nonfinite
        assert _plain(got.value) == _plain(wanted.value)


def _plain(value: Any) -> Any:
    """Arrays as lists: those compare as a whole."""
    if isinstance(value, list):
        return [_plain(v) for v in value]
    if isinstance(value, HistogramResult):
        return (value.above, value.shift, value.bins.tolist())
    return value.tolist() if isinstance(value, np.ndarray) else value


def measure(benchmark: Any, kernel: str, case: Case, make: Callable[[int], Request], **more: Any) -> None:
    """Checks and times what `make(number of elements)` asks for. `more` holds for the headline case."""
    if case.isa == "torch":
        _measure_reference(benchmark, kernel, case, make)
        return
    backend = native(case.threads, case.isa)
    check(case, make(CHECKED), backend)
    request = make(COUNT)
    nbytes = moved_bytes(case, request, COUNT)
    task = make_task(case, base=request.on_deltas, count=COUNT)
    carry_out(backend, task, request)
    copies: list[float] = []
    benchmark.group = "kernel"
    benchmark.pedantic(
        lambda: carry_out(backend, task, request),
        setup=lambda: copies.append(memcpy_seconds(nbytes, case.threads)),
        rounds=ROUNDS,
    )
    if benchmark.stats is None:  # --benchmark-disable: it was run and checked, not timed
        return
    seconds = statistics.median(benchmark.stats.stats.data)
    benchmark.extra_info |= {
        **about(kernel, case, backend.isa),
        **rates(nbytes, benchmark.stats.stats.data, nbytes / statistics.median(copies) / 1e9),
        "ns/element/model": seconds * 1e9 / COUNT / case.models,
        **(more if case == Case(what=case.what) else {}),
    }


def _measure_reference(benchmark: Any, kernel: str, case: Case, make: Callable[[int], Request]) -> None:
    """The readable reference; the compiled kernel, with all threads, runs in turn with it."""
    small, request = make(REFERENCE_COUNT), make(COUNT)
    task = make_task(case, base=request.on_deltas, count=REFERENCE_COUNT)
    whole = make_task(case, base=request.on_deltas, count=COUNT)
    backend = native(THREADS, "")
    ours: list[float] = []

    def setup() -> None:
        start = time.perf_counter()
        carry_out(backend, whole, request)
        ours.append(time.perf_counter() - start)

    benchmark.group = "kernel"
    benchmark.pedantic(lambda: carry_out(TorchBackend(), task, small), setup=setup, rounds=REFERENCE_ROUNDS)
    if benchmark.stats is None:
        return
    seconds = statistics.median(benchmark.stats.stats.data)
    benchmark.extra_info |= {
        **about(kernel, case, "torch"),
        **rates(moved_bytes(case, small, REFERENCE_COUNT), [seconds]),
        "ns/element/model": seconds * 1e9 / REFERENCE_COUNT / case.models,
        "kernel faster by": (seconds / REFERENCE_COUNT) / (statistics.median(ours) / COUNT),
    }


def about(kernel: str, case: Case, isa: str) -> dict[str, Any]:
    return {
        "kernel": kernel,
        "what": case.what or None,
        "dtype": case.dtype,
        "models": case.models,
        "isa": isa,
        "threads": case.threads,
        "regime": "resident",
    }
