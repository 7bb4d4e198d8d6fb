"""Whole merges from the command line against cat+cp, round by round in the same run.

Each round is a fresh process that writes into an empty folder. What the rounds leave behind is removed, and
the file system synced, outside the timing, so that no round pays for the writes of another.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
from pathlib import Path

import pytest
from warpmerge.plan.file_plan import make_plan
from warpmerge.recipe import Recipe

from . import pagecache, process
from .baseline import cat_cp, fastest_disk_read
from .cases import FURTHER, METHODS, TARGET_SHAPE, Case, make_case, total_bytes
from .check import check_output
from .conftest import bench_dir
from .figures import ratio, spread

PER_BYTE = 1.2  # times the dense model's time for a byte, that many small tensors may take

REGIMES = {
    # name: (sync, cold). Cold runs do not sync, so that they wait for the reads and nothing else.
    "warm": (False, False),
    "warm, synced": (True, False),
    "cold": (False, True),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("regime", REGIMES, ids=lambda name: name.replace(", ", "-"))
def test_merge(benchmark, checkpoints, scratch, request, regime: str, method: str) -> None:
    shape = request.config.getoption("shape")
    case = make_case(method, checkpoints(shape), bench_dir() / "recipes" / shape)
    measure(benchmark, case, scratch, regime, request.config.getoption("rounds"), shape)


@pytest.mark.parametrize("method", FURTHER, ids=lambda name: name.replace(", ", "-"))
def test_method(benchmark, checkpoints, auxiliary, scratch, request, method: str) -> None:
    shape = request.config.getoption("shape")
    beside = auxiliary(shape, FURTHER[method])
    case = make_case(method, checkpoints(shape), bench_dir() / "recipes" / shape, auxiliary=beside)
    measure(benchmark, case, scratch, "warm", min(3, request.config.getoption("rounds")), shape)


@pytest.mark.parametrize("shape", ["moe", "many"])
@pytest.mark.parametrize("method", ["linear", "ties"])
def test_many_small_tensors(benchmark, checkpoints, scratch, request, method: str, shape: str) -> None:
    """4,827 and 100,000 tensors, in turn with a dense model: what one tensor costs beside its bytes shows."""
    made, dense = (
        make_case(method, checkpoints(name), bench_dir() / "recipes" / name) for name in (shape, TARGET_SHAPE)
    )
    measure(benchmark, made, scratch, "warm", request.config.getoption("rounds"), shape, dense=dense)


def test_tiny_merge(benchmark, checkpoints, scratch) -> None:
    """The fixed cost of a merge: 26 tensors of 0.2 MB in all."""
    case = make_case("ties", checkpoints("tiny"), bench_dir() / "recipes" / "tiny")
    command = merge_command(case, scratch / "out")
    process.run(command, cwd=scratch)
    check_output(scratch / "out", case)
    startup(benchmark, "merge of a tiny model", 0.5, command, scratch)


def test_version(benchmark, scratch) -> None:
    startup(benchmark, "warpmerge --version", 0.15, [*process.warpmerge_command(), "--version"], scratch)


def merge_command(case: Case, out: Path, *, sync: bool = True) -> list[str]:
    options = ["--quiet", "--overwrite", *([] if sync else ["--no-sync"])]
    return [*process.warpmerge_command(), "merge", str(case.recipe), str(out), *options]


def measure(
    benchmark, case: Case, scratch: Path, regime: str, rounds: int, shape: str, dense: Case | None = None
) -> None:
    """Times a case in turn with its roofs and, where it is given, with a merge of a dense model."""
    sync, cold = REGIMES[regime]
    out, copy = scratch / "out", scratch / "copy"
    command = merge_command(case, out, sync=sync)
    _, peak = process.run(command, cwd=scratch, poll=True)
    check_output(out, case)
    written = sum(path.stat().st_size for path in out.iterdir())

    clear(out)
    disk = fastest_disk_read(case.read) if cold else None
    baseline: list[float] = []
    disk_seconds: list[float] = []
    dense_seconds: list[float] = []

    def condition() -> None:
        clear(out, copy)
        copy.mkdir()
        (pagecache.drop if cold else pagecache.warm)(case.read)

    def setup() -> None:
        condition()
        if disk:
            disk_seconds.append(disk.seconds(case.read))
            condition()
        if dense:
            pagecache.warm(dense.read)
            dense_seconds.append(process.run(merge_command(dense, out, sync=sync), cwd=scratch)[0])
            condition()
        baseline.append(cat_cp(case.read, case.copied, copy, sync=sync).total)
        condition()

    benchmark.group = "merge"
    benchmark.pedantic(
        lambda: process.run(command, cwd=scratch), setup=setup, rounds=min(rounds, 3) if cold else rounds
    )
    clear(out, copy)
    if benchmark.stats is None:  # --benchmark-disable: it was run and checked, not timed
        return
    seconds = list(benchmark.stats.stats.data)
    read = total_bytes(case.read)
    benchmark.extra_info |= {
        "what": case.method.name,
        "passes": passes(case),
        "regime": regime,
        "shape": shape,
        "bytes_read": read,
        "bytes_written": written,
        "gb_per_s": (read + written) / statistics.median(seconds) / 1e9,
        "roof": {"name": "cat+cp", **spread(baseline)},
        "ratio": ratio(seconds, baseline),
        "peak_anonymous_mb": round(peak, 1),
        "reach": case.method.reach if shape == TARGET_SHAPE else None,
        "aim": case.method.aim if shape == TARGET_SHAPE else None,
    }
    if dense:
        times = (read + written) / (total_bytes(dense.read) + total_bytes(dense.copied))
        benchmark.extra_info["per byte of dense"] = ratio(seconds, [s * times for s in dense_seconds])
        benchmark.extra_info["dense reach"] = PER_BYTE
    if disk:
        benchmark.extra_info["disk"] = {
            "name": str(disk),
            **spread(disk_seconds),
            "ratio": ratio(seconds, disk_seconds),
        }


def passes(case: Case) -> int:
    """How often the merge reads its inputs, as the plan has it."""
    plan = make_plan(Recipe.load(case.recipe))
    try:
        return max(map(plan.passes, plan.jobs.groups))
    finally:
        plan.close()


def clear(*folders: Path) -> None:
    """Removes what a round wrote and waits until the disk is quiet."""
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    os.sync()


def startup(benchmark, what: str, reach: float, command: list[str], cwd: Path) -> None:
    """Times a short command; an empty Python program, run in turn with it, is the floor."""
    floor: list[float] = []
    empty = [sys.executable, "-c", "pass"]
    benchmark.group = "startup"
    benchmark.pedantic(
        lambda: process.run(command, cwd=cwd),
        setup=lambda: floor.append(process.run(empty, cwd=cwd)[0]),
        rounds=20,
    )
    if benchmark.stats is not None:
        roof = {"name": "python -c pass", **spread(floor)}
        benchmark.extra_info |= {"what": what, "reach": reach, "roof": roof}
