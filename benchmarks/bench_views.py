"""What it costs to read operands through views: a weighted sum of three models, over each kind of view.

`memory` and `file` are the direct kinds, which a plain merge reads. The others are produced tile by tile from the same
file, which lies in the page cache: rows of 4 KiB gathered in a random order, parts joined one behind the other, and
parts joined side by side, whose pieces of a row are long (2 KiB) or short (64 bytes).
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from warpmerge.dtypes import BFLOAT16
from warpmerge.models.views import FileRegion, GatheredRows, JoinedParts, View
from warpmerge.requests import WeightedSum
from warpmerge.tasks import TensorTask

from .conftest import bench_dir
from .kernels import (
    COUNT,
    ROUNDS,
    THREADS,
    Case,
    about,
    make_task,
    memcpy_seconds,
    moved_bytes,
    native,
    operand,
    result,
)
from .operands import WEIGHTS, carry_out

ROW = 2048  # elements
ROWS = COUNT // ROW
REQUEST = WeightedSum(WEIGHTS[:3], on_deltas=False)


class File(NamedTuple):
    fd: int


@cache
def file_of(index: int) -> File:
    """An operand in a file that is open until the process ends; its offset is odd, as in many shards."""
    folder = bench_dir()
    folder.mkdir(parents=True, exist_ok=True)
    path = Path(folder, f"view-{index}")
    path.write_bytes(b"odd" + operand("bf16", index).view(torch.uint8).numpy().tobytes())
    fd = os.open(path, os.O_RDONLY)
    path.unlink()
    return File(fd)


def region(index: int, *shape: int, start: int = 0) -> FileRegion:
    return FileRegion(BFLOAT16, shape, file_of(index), 3 + 2 * start)


def gathered(index: int) -> View:
    rows = torch.randperm(ROWS, generator=torch.Generator().manual_seed(index))
    return GatheredRows(region(index, ROWS, ROW), rows.numpy(), "t")


def joined(axis: int, parts: int, row: int = ROW) -> Callable[[int], View]:
    rows = COUNT // row
    shape = (rows // parts, row) if axis == 0 else (rows, row // parts)

    def view(index: int) -> View:
        return JoinedParts([region(index, *shape, start=COUNT // parts * p) for p in range(parts)], axis, "t")

    return view


KINDS: dict[str, Callable[[int], View] | None] = {
    "memory": None,
    "file": lambda index: region(index, COUNT),
    "gathered": gathered,
    "joined behind": joined(0, 8),
    "joined beside, long": joined(1, 2),
    "joined beside, short": joined(1, 2, 64),
}


@pytest.mark.parametrize("threads", sorted({1, THREADS}))
@pytest.mark.parametrize("kind", KINDS)
def test_views(benchmark, kind: str, threads: int) -> None:
    case = Case(what=kind, threads=threads)
    backend, make = native(threads, ""), KINDS[kind]
    task = make_task(case, base=False, count=COUNT)
    if make is not None:
        task = TensorTask.alone(
            task.info,
            None,
            task.values,
            [make(k + 1) for k in range(case.models)],
            None,
            task.out_dtype,
            task.sinks,
            task.labels,
        )
    carry_out(backend, task, REQUEST)
    nbytes = moved_bytes(case, REQUEST, COUNT)
    copies: list[float] = []
    benchmark.group = "kernel"
    benchmark.pedantic(
        lambda: carry_out(backend, task, REQUEST),
        setup=lambda: copies.append(memcpy_seconds(nbytes, threads)),
        rounds=ROUNDS,
    )
    _check(task, case, backend)
    if benchmark.stats is None:
        return
    seconds, roof = statistics.median(benchmark.stats.stats.data), statistics.median(copies)
    benchmark.extra_info |= {
        **about("views", case, backend.isa),
        "GB/s": nbytes / seconds / 1e9,
        "roof GB/s": nbytes / roof / 1e9,
        "% of roof": 100 * roof / seconds,
        "ns/element/model": seconds * 1e9 / COUNT / case.models,
    }


def _check(task: Any, case: Case, backend: Any) -> None:
    """A hundred elements across the tensor are the sums of what the views hold there."""
    got = result("bf16").clone()
    for start in range(0, COUNT, COUNT // 99):
        values = [torch.frombuffer(bytearray(view.read(start, 1)), dtype=torch.bfloat16) for view in task.inputs]
        total = torch.zeros(1)
        for value, weight in zip(values, REQUEST.coefficients, strict=True):
            total = total + value.float() * torch.tensor(weight, dtype=torch.float32)
        assert got[start] == total.to(torch.bfloat16), (case, start)
