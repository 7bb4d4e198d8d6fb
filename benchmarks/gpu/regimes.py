"""Inputs that are not on the device: tensors of the host's memory, and files in the page cache."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import warpmerge as wm

from .. import cases, checkpoints, pagecache, process
from ..baseline import cat_cp
from ..check import check_output
from ..figures import rates, ratio, spread
from ..machine import ROOT
from .harness import Bench, OutOfTime
from .models import METHODS, make_models

DISK_METHODS = ("linear", "ties")
REACH_HOST = ">= 85 %"


# --- host memory ----------------------------------------------------------------------------------------------------


def bus(bench: Bench) -> dict[str, list[float]]:
    """Seconds to copy `copy_bytes` between page-locked memory and the device: each way alone, and both at once."""
    nbytes = bench.sizes.copy_bytes
    host = [torch.ones(nbytes, dtype=torch.uint8, pin_memory=bench.on_gpu) for _ in range(2)]
    there = [torch.ones(nbytes, dtype=torch.uint8, device=bench.device) for _ in range(2)]

    def into() -> None:
        there[0].copy_(host[0], non_blocking=True)

    def out() -> None:
        host[1].copy_(there[1], non_blocking=True)

    def both() -> None:
        if not bench.on_gpu:
            into()
            out()
            return
        for stream, copy in zip(streams, (into, out), strict=True):
            with torch.cuda.stream(stream):
                copy()

    streams = [torch.cuda.Stream() for _ in range(2)] if bench.on_gpu else []
    ways = {"host to device": into, "device to host": out, "both ways at once": both}
    found = {}
    for name, way in ways.items():
        # Whole: copies on other streams than the current one are no business of its events.
        found[name] = bench.clock.whole(way, bench.sizes.rounds)
        moved = nbytes * (2 if way is both else 1)
        bench.row("gpu roof", f"page-locked copy, {name}", found[name], bytes=moved, **rates(moved, found[name]))
    return found


def host(bench: Bench) -> None:
    """Pageable tensors of the host through the backend; the limit is the slower direction of the bus."""
    copies = bus(bench)
    into, out = (bench.sizes.copy_bytes / statistics.median(copies[w]) for w in ("host to device", "device to host"))
    base, models = make_models(bench.sizes, bench.device)
    base = {name: t.cpu() for name, t in base.items()}
    models = [{name: t.cpu() for name, t in m.items()} for m in models]
    nbytes = sum(t.numel() * t.element_size() for t in base.values())
    for method, parameters in METHODS.items():
        bench.check_time()
        origin = None if method == "linear" else base

        def merge(backend: str, m: str = method, p: dict = parameters, b: Any = origin) -> dict[str, torch.Tensor]:
            return wm.merge_state_dicts(models, m, base=b, backend=backend, **p)

        got, wanted = merge(bench.backend), merge("cpu")
        assert all(torch.equal(got[name], wanted[name]) for name in wanted), f"{method}: not the CPU's bits"
        del got, wanted
        seconds = bench.clock.whole(lambda: merge(bench.backend), bench.sizes.rounds)
        arrays = len(models) + (origin is not None)
        limit = max(arrays * nbytes / into, nbytes / out)
        bench.row(
            "gpu host",
            method,
            seconds,
            models=len(models),
            shape=bench.sizes.shape,
            regime="host",
            bytes=(arrays + 1) * nbytes,
            limit=limit,
            reach=REACH_HOST,
            cpu=spread(bench.clock.whole(lambda: merge("cpu"), bench.sizes.rounds)),
            **rates((arrays + 1) * nbytes, seconds),
            **{"% of limit": 100 * limit / statistics.median(seconds)},
        )


# --- files ----------------------------------------------------------------------------------------------------------


def disk(bench: Bench) -> None:
    """The command and the call on files in the page cache: this backend and the CPU in turn, each beside cat+cp."""
    folder = ROOT / "build" / "bench"
    made = checkpoints.make(checkpoints.Settings(bench.sizes.shape), folder / bench.sizes.shape)
    scratch = folder / "gpu"
    try:
        for name in DISK_METHODS:
            bench.check_time()
            case = cases.make_case(name, made, folder / "recipes" / bench.sizes.shape)
            try:
                pagecache.warm(case.read)
            except pagecache.NotControlled as error:
                bench.missing("gpu disk", name, str(error), regime="disk-warm")
                continue
            _merge_files(bench, case, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _merge_files(bench: Bench, case: cases.Case, scratch: Path) -> None:
    """Rounds that were begun in time count. Nothing is warmed up: what the first one loads shows in the maximum."""
    out, copy = scratch / "out", scratch / "copy"
    ways: dict[tuple[str, str], Callable[[], Any]] = {}
    for backend in (bench.backend, "cpu"):
        options = ["--quiet", "--overwrite", "--no-sync", "--backend", backend]
        command = [*process.warpmerge_command(), "merge", str(case.recipe), str(out), *options]
        ways[backend, "command"] = lambda c=command: process.run(c, cwd=ROOT)
        ways[backend, "call"] = lambda b=backend: wm.merge(case.recipe, out, backend=b, sync=False, overwrite=True)
    seconds: dict[tuple[str, str], list[float]] = {way: [] for way in ways}
    roofs: dict[tuple[str, str], list[float]] = {way: [] for way in ways}
    written = 0
    try:
        for _ in range(bench.sizes.disk_rounds):
            for way, merge in ways.items():
                bench.check_time()
                shutil.rmtree(scratch, ignore_errors=True)
                copy.mkdir(parents=True)
                roofs[way].append(cat_cp(case.read, case.copied, copy, sync=False).total)
                start = time.perf_counter()
                merge()
                seconds[way].append(time.perf_counter() - start)
                if len(seconds[way]) == 1:
                    check_output(out, case)
                written = sum(path.stat().st_size for path in out.iterdir())
    except OutOfTime:
        if not all(seconds.values()):
            raise
    read = cases.total_bytes(case.read)
    for (backend, way), times in seconds.items():
        bench.row(
            "gpu disk",
            f"{case.method.name}, {way}" + (", on the CPU" if backend == "cpu" else ""),
            times,
            backend=backend,
            shape=bench.sizes.shape,
            regime="disk-warm",
            bytes=read + written,
            roof={"name": "cat+cp", **spread(roofs[backend, way])},
            ratio=ratio(times, roofs[backend, way]),
            **rates(read + written, times),
        )
