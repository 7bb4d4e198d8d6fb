"""`merge`, from a recipe to a published model directory, and `describe`, what it would do."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import backends
from .engine.file_merge import Progress, run_plan
from .errors import RecipeError
from .models import OutputDirectory
from .plan.file_plan import Plan, make_plan
from .recipe import Recipe
from .threads import thread_count
from .units import parse_size, show_size


@dataclass(frozen=True)
class MergeReport:
    """What a merge did, or (`dry_run`) would do. Bytes read count every pass; `memory` is an upper estimate of the
    bytes that are allocated on the host (docs/performance.md)."""

    out: Path
    method: str
    backend: str
    device: str
    threads: int
    tensors: int
    shards: int
    bytes_read: int
    bytes_written: int
    memory: int
    seconds: float
    resumed_shards: int = 0
    dry_run: bool = False

    def as_dict(self) -> dict[str, Any]:
        return {name: str(v) if isinstance(v, Path) else v for name, v in vars(self).items()}


def merge(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    out: str | Path,
    *,
    device: str = "auto",
    backend: str = "auto",
    memory: int | str | None = None,
    device_memory: int | str | None = None,
    threads: int | None = None,
    shard_size: int | str = "5GB",
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    sync: bool = True,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> MergeReport:
    """Merges the checkpoints that `recipe` names into the model directory `out`.

    recipe: a YAML file, a dictionary of the same keys, or a Recipe. device: auto, cpu, or GPUs: cuda, cuda:1, cuda:0,1
    or cuda:all. memory: bound on the bytes that a merge on the CPU allocates (files in the page cache not counted).
    device_memory: bound on what is used of each GPU's memory; default: what is free, less a margin. shard_size:
    largest output file. sync: return only when the data is on the disk. resume: keep the shards that an interrupted run
    of the same merge finished. progress: called with (bytes read, bytes to read).

    Raises RecipeError, CheckpointError, OutputError or DeviceError (all MergeError); nothing that looks complete is
    left behind.
    """
    started = time.perf_counter()
    info = backends.choose(backend, device)
    plan = make_plan(Recipe.load(recipe), seed=seed, shard_size=parse_size(shard_size, "shard_size"))
    try:
        count = thread_count(threads)
        options, needed = _resources(plan, info, device, count, memory, device_memory)
        out = Path(out)
        report = {
            "out": out,
            "method": plan.recipe.method.name,
            "backend": info.name,
            "device": options["device"],
            "threads": count,
            "tensors": len(plan.jobs),
            "shards": len(plan.shards),
            "bytes_read": plan.read_bytes,
            "bytes_written": plan.write_bytes,
            "memory": needed,
        }
        directory = OutputDirectory(
            out, inputs=[c.path for c in plan.checkpoints], overwrite=overwrite, resume=resume, sync=sync
        )
        if dry_run:
            return MergeReport(**report, seconds=time.perf_counter() - started, dry_run=True)
        engine_backend = backends.create(info, threads=count, **options)
        try:
            resumed = run_plan(plan, directory, engine_backend, progress)
        finally:
            engine_backend.close()
        return MergeReport(**report, seconds=time.perf_counter() - started, resumed_shards=resumed)
    finally:
        plan.close()


def _resources(
    plan: Plan,
    info: backends.BackendInfo,
    device: str,
    threads: int,
    limit: int | str | None,
    device_limit: int | str | None,
) -> tuple[dict[str, Any], int]:
    """Options of the backend, and the bytes that it will allocate on the host at most."""
    if device_limit is not None and "cuda" not in info.devices:
        raise RecipeError(f"device_memory bounds the memory of a GPU, but backend '{info.name}' computes on the CPU.")
    if "cuda" in info.devices:
        from .backends.gpu.staging import host_memory

        if limit is not None:
            raise RecipeError("memory bounds a merge on the CPU; on a GPU use device_memory.")
        budget = None if device_limit is None else parse_size(device_limit, "device_memory")
        return {"device": "cuda" if device == "auto" else device, "budget": budget}, host_memory(threads)
    tile, needed = _cpu_memory(plan, threads, limit)
    return {"device": "cpu", "tile": tile}, needed


def _cpu_memory(plan: Plan, threads: int, limit: int | str | None) -> tuple[int, int]:
    """Tile in elements, and the bytes that will be allocated at most."""
    from .backends.cpu import backend as cpu

    models = max((len(job.inputs) for job in plan.jobs), default=1)
    itemsize = max((view.dtype.itemsize for job in plan.jobs for view in job.views), default=2)
    largest = max((job.entry.count for job in plan.jobs), default=0)
    budget = None if limit is None else parse_size(limit, "memory")
    whole = plan.whole_bytes()
    try:
        tile = cpu.tile_for(None if budget is None else budget - whole, threads, models, itemsize, largest)
    except ValueError as error:
        least = show_size(error.args[0] + whole)
        why = f", as method '{plan.recipe.method.name}' holds more of a tensor than tiles" if whole else ""
        raise RecipeError(f"memory: {show_size(budget)} is too little; {threads} threads need {least}{why}.") from None
    return tile, cpu.memory(threads, tile, models, itemsize, largest) + whole


def describe(recipe: str | Path | Mapping[str, Any] | Recipe, **options: Any) -> dict[str, Any]:
    """What merging would read, write and allocate: the rows of `warpmerge plan`. Options as in `merge`."""
    seed, shard_size = options.get("seed", 0), parse_size(options.get("shard_size", "5GB"), "shard_size")
    device = options.get("device", "auto")
    info = backends.choose(options.get("backend", "auto"), device)
    plan = make_plan(Recipe.load(recipe), seed=seed, shard_size=shard_size)
    try:
        count = thread_count(options.get("threads"))
        chosen, needed = _resources(plan, info, device, count, options.get("memory"), options.get("device_memory"))
        merged = [job for job in plan.jobs if job.values is not None]
        auxiliary = {id(c): label for label, c in plan.auxiliary.items()}
        roles = {
            **auxiliary,
            id(plan.metadata_source): "metadata source",
            **{id(c): "input" for c in plan.inputs},
            id(plan.base): "base",
        }
        dtypes = ", ".join(f"{d} ({show_size(n)})" for d, n in plan.dtypes.items())
        return {
            "method": plan.recipe.method.name,
            "tensors": f"{len(plan.jobs)} ({len(merged)} merged, {len(plan.jobs) - len(merged)} copied)",
            "passes": max((plan.passes(job) for job in plan.jobs), default=0),
            "bytes_read": plan.read_bytes,
            "bytes_written": plan.write_bytes,
            "output_dtypes": dtypes,
            "shards": len(plan.shards),
            "memory": needed,
            "backend": f"{info.name} on {chosen['device']}, {count} threads",
            "models": [
                {
                    "model": str(c),
                    "role": roles[id(c)],
                    "tensors": len(c.entries),
                    "bytes": sum(s.size for s in c.shards),
                    "path": str(c.path),
                }
                for c in plan.checkpoints
            ],
        }
    finally:
        plan.close()
