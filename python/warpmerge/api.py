"""`merge` turns a recipe into a published model directory. `describe` says what `merge` would do."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import backends, staged
from .dtypes import DTYPES
from .engine.file_merge import Progress, run_plan
from .errors import UsageError, enough_memory
from .models import OutputDirectory
from .models.view_columns import NO_KIND
from .plan.file_plan import Plan, make_plan
from .recipe import Recipe
from .threads import thread_count
from .units import parse_size, show_size


@dataclass(frozen=True)
class MergeReport:
    """What a merge did. With `dry_run`: what the merge would do.

    Attributes:
        out: the output directory.
        method: name of the method.
        backend: name of the backend: `cuda`, `triton`, `cpu` or `torch`.
        device: `cpu`, or the GPUs as in `merge`.
        threads: number of worker threads.
        tensors: number of output tensors.
        shards: number of output files with weights.
        bytes_read: bytes of input, counted once per pass.
        bytes_written: bytes of output.
        memory: upper estimate of the bytes that are allocated on the host (docs/performance.md).
        seconds: wall time.
        resumed_shards: number of shards that an earlier run had finished.
        dry_run: True if nothing was written.
        notices: what the recipe says without effect, and what became of tokens, a sentence each.
    """

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
    notices: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The attributes as a dictionary that JSON can hold."""
        return {name: str(v) if isinstance(v, Path) else v for name, v in vars(self).items()}


@enough_memory()
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
    strict: bool = False,
    progress: Progress | None = None,
) -> MergeReport:
    """Merges the checkpoints of a recipe into a model directory.

    Args:
        recipe: a YAML file, a dictionary with the same keys, or a Recipe.
        out: the output directory.
        device: `auto`, `cpu`, or GPUs: `cuda`, `cuda:1`, `cuda:0,1` or `cuda:all`.
        backend: `auto`, `cuda`, `triton`, `cpu` or `torch`.
        memory: bound on the bytes that a merge on the CPU allocates, such as `"4GB"`. The page cache does not count.
        device_memory: bound on the bytes used of each GPU's memory. Default: the free memory, less a margin.
        threads: number of worker threads. Default: the cores that this process may use.
        shard_size: bytes of the largest output file, unless one tensor is larger.
        seed: seed of methods that draw at random.
        resume: keep the shards that an interrupted run of the same merge finished. If the same merge has published
            already, its weights are checked and nothing is merged.
        overwrite: replace an existing output. An input is never replaced.
        sync: return only when the data is on the disk.
        dry_run: check everything and write nothing.
        strict: whatever the recipe says without effect is an error.
        progress: called with (bytes read, bytes to read); every pass counts.

    Returns:
        A MergeReport.

    Raises:
        UsageError: the recipe or an argument is wrong.
        CheckpointError: a model's files are missing or damaged, or do not fit the other models.
        OutputError: the output directory cannot be used, or the disk is full.
        DeviceError: the GPU cannot be used, or has too little memory.

        All are MergeErrors. After an error no output looks complete.

    Example:
        >>> report = wm.merge("recipe.yml", "merged/", memory="4GB")
        >>> report.tensors, report.seconds
    """
    started = time.perf_counter()
    recipe, out, size = load(recipe, strict=strict), Path(out), parse_size(shard_size, "shard_size")
    info, count = backends.choose(backend, device), thread_count(threads)
    made = staged.plans(recipe, seed=seed, shard_size=size)

    def run(plan: Plan, place: Path, overwrite: bool, resume: bool, dry_run: bool) -> MergeReport:
        options, needed = _resources(plan, info, device, count, memory, device_memory)
        directory = OutputDirectory(
            place,
            inputs=plan.directories,
            overwrite=overwrite,
            resume=resume,
            sync=sync,
            fingerprint=plan.fingerprint(),
            threads=count,
        )
        resumed = 0
        if not dry_run:
            with contextlib.closing(backends.create(info, threads=count, **options)) as engine_backend:
                resumed = run_plan(plan, directory, engine_backend, progress)
        return MergeReport(
            place,
            plan.recipe.method.name,
            info.name,
            options["device"],
            count,
            len(plan.jobs),
            len(plan.shards),
            sum(p.read_bytes for p in made),
            sum(p.write_bytes for p in made),
            needed,
            time.perf_counter() - started,
            resumed,
            dry_run,
            notices,
        )

    def run_document(document: Recipe, place: Path) -> None:
        plan = make_plan(document, seed=seed, shard_size=size)
        with contextlib.closing(plan):
            run(plan, place, overwrite=True, resume=True, dry_run=False)

    try:
        notices = _notices(made, strict)
        last, fingerprint = made[-1], made[-1].fingerprint()
        if dry_run or not recipe.stages or (resume and staged.is_of(out, fingerprint)):
            return run(last, out, overwrite, resume, dry_run)
        run(last, out, overwrite, resume, dry_run=True)  # what the output is refused for shows now
        located = staged.merge_stages(recipe, out, run_document)
        with contextlib.closing(make_plan(located, seed=seed, shard_size=size, stands_for=fingerprint)) as plan:
            report = run(plan, out, overwrite, resume, False)
        staged.remove_scratch(out)
        return report
    finally:
        staged.close(made)


def load(source: str | Path | Mapping[str, Any] | Recipe, *, strict: bool = False) -> Recipe:
    """Reads a recipe. `strict`: whatever it says without effect is an error."""
    recipe = Recipe.load(source)
    if strict and recipe.notices:
        raise UsageError(*recipe.notices)
    return recipe


def _notices(plans: list[Plan], strict: bool) -> tuple[str, ...]:
    """Those of the recipe and of its models, and what became of tokens. `strict`: the former are an error."""
    found = tuple(dict.fromkeys(notice for plan in plans for notice in plan.notices))
    if strict and found:
        raise UsageError(*found)
    return (*found, *(notice for plan in plans for notice in plan.tokenizer.notices))


def _resources(
    plan: Plan,
    info: backends.BackendInfo,
    device: str,
    threads: int,
    limit: int | str | None,
    device_limit: int | str | None,
) -> tuple[dict[str, Any], int]:
    """Options of the backend, and an upper bound on the bytes that it allocates on the host."""
    if device_limit is not None and "cuda" not in info.devices:
        raise UsageError(f"device_memory is for GPUs, but backend '{info.name}' computes on the CPU; remove it.")
    if "cuda" in info.devices:
        from .backends.gpu.staging import host_memory

        if limit is not None:
            raise UsageError("memory is for merges on the CPU; on a GPU use device_memory.")
        budget = None if device_limit is None else parse_size(device_limit, "device_memory")
        return {"device": "cuda" if device == "auto" else device, "budget": budget}, (
            host_memory(threads) + plan.factor_bytes(threads)
        )
    tile, needed = _cpu_memory(plan, threads, limit)
    return {"device": "cpu", "tile": tile}, needed


def _cpu_memory(plan: Plan, threads: int, limit: int | str | None) -> tuple[int, int]:
    """Elements of a tile, and an upper bound on the bytes that are allocated."""
    from .backends.cpu import backend as cpu

    groups = plan.jobs.groups
    models = max((len(group.inputs) for group in groups), default=1)
    kinds = {kind for group in groups for column in group.columns for kind in column.kinds} - {NO_KIND}
    itemsize = max((DTYPES[kind].itemsize for kind in kinds), default=2)
    largest = max(plan.jobs.counts, default=0)
    budget = None if limit is None else parse_size(limit, "memory")
    measures = any(plan.passes(group) > 1 for group in groups)
    extent = cpu.Extent(threads, models, itemsize, largest, measures)
    whole = plan.whole_bytes()
    held = whole + plan.factor_bytes(threads)
    try:
        tile = cpu.tile_for(None if budget is None else budget - held, extent)
    except ValueError as error:
        least = show_size(error.args[0] + held)
        why = f", because method '{plan.recipe.method.name}' holds more of a tensor than tiles" if whole else ""
        raise UsageError(
            f"memory: {show_size(budget or 0)} is too little: with threads={threads} a merge needs {least}{why}; allow "
            "more, or use fewer threads."
        ) from None
    return tile, cpu.memory(extent, tile) + held


def describe(recipe: str | Path | Mapping[str, Any] | Recipe, **options: Any) -> dict[str, Any]:
    """The rows of `warpmerge plan`: what a merge reads, writes and allocates. `options` are arguments of `merge`."""
    seed, shard_size = options.get("seed", 0), parse_size(options.get("shard_size", "5GB"), "shard_size")
    device = options.get("device", "auto")
    info = backends.choose(options.get("backend", "auto"), device)
    recipe = load(recipe, strict=options.get("strict", False))
    made = staged.plans(recipe, seed=seed, shard_size=shard_size)
    plan = made[-1]
    try:
        notices = _notices(made, options.get("strict", False))
        count = thread_count(options.get("threads"))
        chosen, needed = _resources(plan, info, device, count, options.get("memory"), options.get("device_memory"))
        merged = len(plan.jobs.merged())
        auxiliary = {id(c): label for label, c in plan.auxiliary.items()}
        roles = {
            **auxiliary,
            id(plan.metadata_source): "metadata source",
            **{id(c): "input" for c in plan.inputs},
            **{id(c): "base" for c in plan.bases},
        }
        dtypes = ", ".join(f"{d} ({show_size(n)})" for d, n in plan.dtypes.items())
        return {
            "method": plan.recipe.method.name,
            "tensors": f"{len(plan.jobs)} ({merged} merged, {len(plan.jobs) - merged} copied)",
            "passes": max(map(plan.passes, plan.jobs.groups), default=0),
            "bytes_read": sum(p.read_bytes for p in made),
            "bytes_written": sum(p.write_bytes for p in made),
            **({"bytes_in_between": sum(p.write_bytes for p in made[:-1])} if recipe.stages else {}),
            "output_dtypes": dtypes,
            "shards": len(plan.shards),
            "memory": needed,
            "backend": f"{info.name} on {chosen['device']}, {count} threads",
            "notices": list(notices),
            "models": [
                {
                    "model": str(c),
                    "role": roles[id(c)],
                    "tensors": len(c.names),
                    "bytes": sum(f.identity.size for part in c.parts for f in part.files),
                    "path": str(c.path),
                }
                for c in plan.checkpoints
            ],
        }
    finally:
        staged.close(made)
