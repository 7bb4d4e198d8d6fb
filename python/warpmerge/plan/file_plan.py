"""Recipe x checkpoints -> plan. Everything that can be known before a weight is read is checked here."""

from __future__ import annotations

import hashlib
import itertools
import json
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from .. import __version__
from ..dtypes import DTYPES, FLOAT64, DType
from ..methods.parameters import checked_seed
from ..models import SINGLE, Checkpoint, Columns, OutputShard, allow_open_files, layout
from ..models.checkpoint import Part
from ..models.coming import ComingCheckpoint
from ..models.companions import Companion
from ..models.inputs import check_identity
from ..models.names import shard_name
from ..models.sidecars import Sidecars, sidecars
from ..recipe import ModelRef, Recipe
from ..tasks import Group, Jobs
from .arrange import arrange
from .jobs import is_whole, make_jobs
from .tokenized import Tokenized


@dataclass
class Plan:
    """What a merge will read, compute and write."""

    recipe: Recipe
    seed: int
    inputs: list[Checkpoint]  # merged models, in order
    bases: list[Checkpoint]  # the reference, if the method has one; slices may have several
    metadata_source: Checkpoint
    jobs: Jobs
    layout: Columns  # where each job's result lies in its shard
    shard_of: array[int]
    shards: list[OutputShard]
    config: dict[str, Any]  # of the output
    auxiliary: Mapping[str, Checkpoint] = field(default_factory=dict)  # by label: "fisher of MODEL"
    stands_for: str = ""  # the fingerprint of the plan that this one carries out, if it is another's
    tokenizer: Tokenized = field(default_factory=Tokenized)
    sidecars: Sidecars = field(init=False)

    def __post_init__(self) -> None:
        self.sidecars = sidecars(self)

    @property
    def directories(self) -> list[Path]:
        """What is read, and must not be written to."""
        return [*(part.path for part in self.parts), *self.tokenizer.directories]

    @property
    def checkpoints(self) -> list[Checkpoint]:
        everything = [*self.inputs, *self.auxiliary.values(), *self.bases, self.metadata_source]
        return list({id(c): c for c in everything}.values())

    @property
    def parts(self) -> list[Part]:
        """What the checkpoints are read from, each once."""
        return list({id(part): part for checkpoint in self.checkpoints for part in checkpoint.parts}.values())

    def passes(self, group: Group) -> int:
        """How often the tensors of a group are read."""
        return 1 if group.method is None else group.method.passes(group.values)

    @cached_property
    def rows_of(self) -> list[list[int]]:
        """The rows of each group's tensors."""
        rows: list[list[int]] = [[] for _ in self.jobs.groups]
        for row, number in enumerate(self.jobs.group_of):
            rows[number].append(row)
        return rows

    @cached_property
    def read_bytes(self) -> int:
        """Bytes of all passes."""
        return sum(
            self.passes(group) * sum(map(group.read_bytes.__getitem__, rows))
            for group, rows in zip(self.jobs.groups, self.rows_of, strict=True)
        )

    def left_bytes(self, rows: Sequence[int]) -> int:
        """Bytes of all passes if only these rows are still to be merged; what is measured of a whole model is measured
        of all its tensors."""
        left, jobs = 0, self.jobs
        for row in rows:
            group = jobs.group(row)
            left += jobs.read_bytes(row) * (1 if is_whole(group.values) else self.passes(group))
        for group, members in zip(jobs.groups, self.rows_of, strict=True):
            if rows and is_whole(group.values):
                left += (self.passes(group) - 1) * sum(map(group.read_bytes.__getitem__, members))
        return left

    def whole_bytes(self) -> int:
        """What a method holds of the tensor that needs most, beside tiles."""
        method = self.recipe.method
        if method.memory is None:
            return 0
        return max(
            (
                method.memory(shape, group.models) * (2 if group.fp64 else 1)
                for group, rows in zip(self.jobs.groups, self.rows_of, strict=True)
                if group.method is not None and (group.auxiliary or not method.auxiliary)
                for shape in {self.jobs.shapes[row] for row in rows}
            ),
            default=0,
        )

    def factor_bytes(self, threads: int) -> int:
        """What models hold of their adapters."""
        views = [view for checkpoint in self.checkpoints for view in checkpoint.low_rank]
        if not views:
            return 0
        from ..models.low_rank import memory

        return memory(views, threads)

    @property
    def notices(self) -> tuple[str, ...]:
        """What the recipe says without effect, and what a user should know of the models."""
        return (*self.recipe.notices, *(notice for c in self.checkpoints for notice in c.notices))

    @property
    def write_bytes(self) -> int:
        return sum(shard.nbytes for shard in self.shards)

    @property
    def dtypes(self) -> dict[DType, int]:
        """Bytes of output per element type."""
        counted: dict[DType, int] = {}
        for group, rows in zip(self.jobs.groups, self.rows_of, strict=True):
            nbytes = group.out_dtype.itemsize * sum(map(self.jobs.counts.__getitem__, rows))
            counted[group.out_dtype] = counted.get(group.out_dtype, 0) + nbytes
        return counted

    def fingerprint(self) -> str:
        """Changes with anything that changes the output or its layout: what --resume compares."""
        if self.stands_for:
            return self.stands_for
        # Without the device: its number may be another one after a restart.
        files = [[str(f.path), *f.identity[1:]] for part in self.parts for f in part.files]
        parts = [
            __version__,
            self.recipe.to_yaml(),
            self.seed,
            files,
            [(s.name, s.nbytes) for s in self.shards],
            self.tokenizer.fingerprint,
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def check(self) -> None:
        """Raises CheckpointError if a shard, an index, a config or a companion changed since the plan was made."""
        for checkpoint in self.checkpoints:
            checkpoint.check()
        for content in self.sidecars.ready.values():
            if isinstance(content, Companion):
                check_identity(content.path, content.identity)

    def close(self) -> None:
        for checkpoint in self.checkpoints:
            checkpoint.close()


def make_plan(
    recipe: Recipe,
    *,
    seed: int = 0,
    shard_size: int = 5 * 10**9,
    coming: Mapping[str, ComingCheckpoint] = {},
    stands_for: str = "",
) -> Plan:
    """Opens the checkpoints' headers, checks that they fit and lays out the output.

    `coming`: by name models that are not there yet; with such a model the plan can be looked at, but not run.
    `stands_for`: the fingerprint of such a plan, when its models are there.
    Raises UsageError for a model or parameter that is wrong, CheckpointError for files that are.
    """
    seed = checked_seed(seed)
    opened: dict[ModelRef, Checkpoint] = {}

    def checkpoint(ref: ModelRef) -> Checkpoint:
        if ref not in opened:
            named: Any = coming.get(ref.path)
            if ref.adapter is not None:
                from ..models.adapted import AdaptedCheckpoint, Adapter  # few merges have adapters

                opened[ref] = AdaptedCheckpoint(ref, checkpoint(ref.without_adapter), Adapter(ref.adapter))
            else:
                opened[ref] = Checkpoint(ref) if named is None else named
        return opened[ref]

    metadata_source = checkpoint(recipe.metadata_source)
    found, tokenizer = arrange(recipe, checkpoint), Tokenized()
    if recipe.tokenizer is not None or recipe.chat_template is not None:
        from .tokenizer import with_tokenizer  # few merges work on tokenizers

        found, tokenizer = with_tokenizer(recipe, found, checkpoint)
    wanted = recipe.out_dtype or recipe.dtype
    jobs = make_jobs(
        recipe.method,
        found.source,
        found.inputs,
        found.base,
        values=found.values,
        out_kinds=lambda kinds: bytes([DTYPES.index(wanted)] * len(kinds)) if wanted else found.kinds or kinds,
        labels=found.labels,
        auxiliary=found.auxiliary,
        take_from_source=recipe.base is not None,
        partial=found.partial,
        fp64=recipe.dtype == FLOAT64,
        seed=seed,
    )
    placed, shard_of, shards = _place(jobs, shard_size)
    allow_open_files(len(shards) + sum(len(c.shards) for c in opened.values()))
    return Plan(
        recipe,
        seed,
        found.merged,
        found.bases,
        metadata_source,
        jobs,
        placed,
        shard_of,
        shards,
        found.config,
        found.beside,
        stands_for,
        tokenizer,
    )


def _place(jobs: Jobs, shard_size: int) -> tuple[Columns, array[int], list[OutputShard]]:
    """Fills shards in the order of the jobs, none larger than `shard_size` unless a single tensor is. Returns where
    each result lies, the shard of each, and the shards."""
    dtypes = [jobs.groups[number].out_dtype for number in jobs.group_of]
    firsts, filled = [0], 0
    for row, (count, dtype) in enumerate(zip(jobs.counts, dtypes, strict=True)):
        nbytes = count * dtype.itemsize
        if row > firsts[-1] and filled + nbytes > shard_size:
            firsts.append(row)
            filled = 0
        filled += nbytes
    parts, shards, shard_of = [], [], array("i")
    for number, (first, end) in enumerate(itertools.pairwise([*firsts, len(jobs)])):
        name = SINGLE if len(firsts) == 1 else shard_name(number, len(firsts))
        mine = slice(first, end)
        tensors = zip(jobs.names[mine], dtypes[mine], jobs.shapes[mine], strict=True)
        header, columns, size = layout(tensors, {"format": "pt"})
        parts.append(columns)
        shards.append(OutputShard(name, header, size))
        shard_of.extend([number] * (end - first))
    return Columns.joined(parts), shard_of, shards


def index_text(plan: Plan) -> bytes | None:
    """The contents of model.safetensors.index.json; None for a model of one file.

    It is the text that json.dumps makes with an indent of 2. The long map is written by C code.
    """
    if len(plan.shards) == 1:
        return None
    quoted = json.encoder.encode_basestring_ascii
    weight_map = sorted(zip(plan.jobs.names, (plan.shards[number].name for number in plan.shard_of), strict=True))
    entries = ",".join([f"\n    {quoted(name)}: {quoted(file)}" for name, file in weight_map])
    text = json.dumps({"metadata": {"total_size": sum(plan.layout.sizes)}}, indent=2).removesuffix("\n}")
    return f'{text},\n  "weight_map": {{{entries}\n  }}\n}}\n'.encode()


__all__ = ["OutputShard", "Plan", "index_text", "make_plan"]
