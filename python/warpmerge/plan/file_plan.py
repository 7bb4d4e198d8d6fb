"""Recipe x checkpoints -> jobs. Everything that can be known before a weight is read is checked here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .. import __version__
from ..dtypes import FLOAT64, DType
from ..errors import CheckpointError, close_matches
from ..methods.auxiliary import check_auxiliary
from ..methods.parameters import checked_seed
from ..models import INDEX, SINGLE, Checkpoint, allow_open_files, layout
from ..models.sidecars import sidecars
from ..models.views import View
from ..recipe import Layers, ModelRef, Recipe, Resolver


@dataclass(slots=True)
class Job:
    """One output tensor. `values` is None for a tensor that is copied (integers, booleans)."""

    name: str
    shape: tuple[int, ...]
    dtype: DType
    inputs: list[Any]  # views
    base: View | None
    values: Mapping[str, Any] | None
    fp64: bool
    auxiliary: tuple[tuple[int, ...], ...] = ()  # shapes of the last inputs, which are no model's own
    shard: int = 0
    entry: Any = None  # a TensorEntry, once the output is laid out

    @property
    def views(self) -> list[View]:
        return [*self.inputs, *([self.base] if self.base else [])]

    @property
    def read_bytes(self) -> int:
        """Bytes of one pass."""
        return sum(view.read_bytes for view in self.views)


@dataclass(frozen=True)
class OutputShard:
    name: str
    header: bytes
    nbytes: int


@dataclass
class Plan:
    """What a merge will read, compute and write."""

    recipe: Recipe
    seed: int
    inputs: list[Checkpoint]  # merged models, in order
    base: Checkpoint | None  # the reference, if the method has one
    metadata_source: Checkpoint
    jobs: list[Job]
    shards: list[OutputShard]
    auxiliary: Mapping[str, Checkpoint] = field(default_factory=dict)  # by label: "fisher of MODEL"
    _passes: dict[int, int] = field(default_factory=dict)

    @property
    def labels(self) -> list[str]:
        """Of a tensor's inputs, the base's last."""
        return [*map(str, self.inputs), *self.auxiliary, *([str(self.base)] if self.base else [])]

    @property
    def checkpoints(self) -> list[Checkpoint]:
        everything = [*self.inputs, *self.auxiliary.values(), *([self.base] if self.base else []), self.metadata_source]
        return list({id(c): c for c in everything}.values())

    def passes(self, job: Job) -> int:
        if job.values is None:
            return 1
        key = id(job.values)  # tensors that found the same share their values
        if key not in self._passes:
            self._passes[key] = self.recipe.method.passes(job.values)
        return self._passes[key]

    @property
    def read_bytes(self) -> int:
        return sum(job.read_bytes * self.passes(job) for job in self.jobs)

    def whole_bytes(self) -> int:
        """What a method holds of the tensor that needs most, beside tiles."""
        method, models = self.recipe.method, len(self.inputs)
        if method.memory is None:
            return 0
        whole = [j for j in self.jobs if j.values is not None and (j.auxiliary or not method.auxiliary)]
        return max((method.memory(j.shape, models) * (2 if j.fp64 else 1) for j in whole), default=0)

    @property
    def write_bytes(self) -> int:
        return sum(shard.nbytes for shard in self.shards)

    @property
    def dtypes(self) -> dict[DType, int]:
        """Bytes of output per element type."""
        counted: dict[DType, int] = {}
        for job in self.jobs:
            counted[job.dtype] = counted.get(job.dtype, 0) + job.entry.nbytes
        return counted

    def fingerprint(self) -> str:
        """Changes with anything that changes the output or its layout: what --resume compares."""
        files = [[str(s.path), s.size, s.mtime_ns] for checkpoint in self.checkpoints for s in checkpoint.shards]
        parts = [
            __version__,
            self.recipe.to_yaml(),
            self.seed,
            files,
            [(s.name, s.nbytes) for s in self.shards],
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def close(self) -> None:
        for checkpoint in self.checkpoints:
            checkpoint.close()


def make_plan(recipe: Recipe, *, seed: int = 0, shard_size: int = 5 * 10**9) -> Plan:
    """Opens the checkpoints' headers, checks that they fit and lays out the output.

    Raises RecipeError for a model or parameter that is wrong, CheckpointError for files that are.
    """
    seed = checked_seed(seed)
    opened: dict[ModelRef, Checkpoint] = {}

    def checkpoint(ref: ModelRef) -> Checkpoint:
        if ref not in opened:
            opened[ref] = Checkpoint(ref)
        return opened[ref]

    metadata_source = checkpoint(recipe.metadata_source)
    inputs = [checkpoint(m.ref) for m in recipe.inputs]
    base = checkpoint(recipe.reference) if recipe.reference else None
    for other in [*inputs, *([base] if base else [])]:
        _check_names(metadata_source, other)
    auxiliary = {}
    for kind in recipe.method.auxiliary:
        for model, ref in zip(recipe.inputs, recipe.auxiliary(kind.name), strict=True):
            label = kind.label(str(model.ref))
            auxiliary[label] = checkpoint(ref)
            kind.check_names(label, auxiliary[label].entries, metadata_source.entries)
    sidecars(
        metadata_source.path, metadata_source.config(), None
    )  # whether they can be read shows now, not after the merge
    resolver = Resolver(recipe, Layers(metadata_source.entries))
    jobs = [_job(name, recipe, resolver, metadata_source, inputs, base) for name in metadata_source.entries]
    for job in jobs:
        _add_auxiliary(job, recipe, auxiliary)
    shards = _place(jobs, shard_size)
    allow_open_files(len(shards) + sum(len(c.shards) for c in opened.values()))
    return Plan(recipe, seed, inputs, base, metadata_source, jobs, shards, auxiliary)


def _check_names(metadata_source: Checkpoint, other: Checkpoint) -> None:
    missing = [name for name in metadata_source.entries if name not in other.entries]
    if missing:
        near = close_matches(missing[0], other.entries.keys() - metadata_source.entries.keys())
        raise CheckpointError(
            f"model '{other}' lacks the tensor '{missing[0]}' of '{metadata_source}'{_more(missing)}{near or '.'} "
            "Are both the same architecture?"
        )
    extra = [name for name in other.entries if name not in metadata_source.entries]
    if extra:
        raise CheckpointError(
            f"model '{other}' has the tensor '{extra[0]}', which '{metadata_source}' lacks{_more(extra)}. If one of "
            "them stores tied weights twice, save it again with them tied."
        )


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _job(
    name: str,
    recipe: Recipe,
    resolver: Resolver,
    metadata_source: Checkpoint,
    inputs: list[Checkpoint],
    base: Checkpoint | None,
) -> Job:
    own = metadata_source.view(name)
    views = [c.view(name) for c in inputs]
    reference = base.view(name) if base else None
    checkpoints = [*inputs, *([base] if base else [])]
    for found, view in zip(checkpoints, [*views, *([reference] if reference else [])], strict=True):
        if view.shape != own.shape:
            hint = " Their vocabularies differ." if "embed" in name or "lm_head" in name or "wte" in name else ""
            raise CheckpointError(
                f"tensor '{name}' is {list(own.shape)} in '{metadata_source}' but {list(view.shape)} in '{found}'."
                f"{hint}"
            )
        if view.dtype != own.dtype and not (view.dtype.is_float and own.dtype.is_float):
            raise CheckpointError(
                f"tensor '{name}' is {own.dtype} in '{metadata_source}' but {view.dtype} in '{found}'."
            )
    if not own.dtype.is_float:
        copying = recipe.method.copies
        if any(v.dtype.is_quantized for v in [own, *views]) and not copying:
            raise CheckpointError(
                f"tensor '{name}' is quantized ({own.dtype}); dequantize the models before merging them."
            )
        quantized = next((c for c in [metadata_source, *inputs] if c.config().get("quantization_config")), None)
        if quantized is not None and not copying:
            raise CheckpointError(
                f"model '{quantized}' is quantized (its config.json says so, and tensor '{name}' is {own.dtype}); "
                "dequantize it before merging."
            )
        # Never averaged: the base's, or the first model's if all models agree.
        sources = [own] if recipe.base and not copying else views
        return Job(name, own.shape, own.dtype, sources, None, None, False)
    dtype = recipe.out_dtype or recipe.dtype or own.dtype
    dtypes = [v.dtype for v in [*views, *([reference] if reference else [])]]
    fp64 = FLOAT64 in (recipe.dtype, *dtypes)
    return Job(name, own.shape, dtype, views, reference, resolver.values(name), fp64)


def _add_auxiliary(job: Job, recipe: Recipe, auxiliary: Mapping[str, Checkpoint]) -> None:
    """Puts the tensor's auxiliary tensors behind its inputs."""
    views = [c.view(job.name) if job.name in c.entries else None for c in auxiliary.values()]
    found = [None if view is None else (view.shape, view.dtype) for view in views]
    weight = job.shape, job.inputs[0].dtype
    job.auxiliary = check_auxiliary(recipe.method.auxiliary, job.name, weight, found, list(auxiliary))
    if job.auxiliary:
        job.inputs += [view for view in views if view is not None]
        job.fp64 = job.fp64 or any(view.dtype == FLOAT64 for view in job.inputs)


def _place(jobs: list[Job], shard_size: int) -> list[OutputShard]:
    """Fills shards in the order of the jobs, none larger than `shard_size` unless a single tensor is."""
    groups: list[list[Job]] = [[]]
    filled = 0
    for job in jobs:
        nbytes = _nbytes(job)
        if groups[-1] and filled + nbytes > shard_size:
            groups.append([])
            filled = 0
        groups[-1].append(job)
        filled += nbytes
    shards = []
    for number, group in enumerate(groups):
        name = SINGLE if len(groups) == 1 else f"model-{number + 1:05d}-of-{len(groups):05d}.safetensors"
        header, columns, size = layout(((j.name, j.dtype, j.shape) for j in group), {"format": "pt"})
        for job, entry in zip(group, columns.entries(), strict=True):
            job.shard, job.entry = number, entry
        shards.append(OutputShard(name, header, size))
    return shards


def _nbytes(job: Job) -> int:
    count = 1
    for length in job.shape:
        count *= length
    return count * job.dtype.itemsize


def index_document(plan: Plan) -> dict[str, Any]:
    """The contents of model.safetensors.index.json."""
    total = sum(job.entry.nbytes for job in plan.jobs)
    weight_map = {job.name: plan.shards[job.shard].name for job in plan.jobs}
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}


__all__ = ["INDEX", "Job", "OutputShard", "Plan", "index_document", "make_plan"]
