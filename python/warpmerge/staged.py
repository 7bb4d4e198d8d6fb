"""Merges of several documents: each named one is merged into a directory beside the output, the last into the output.

Everything is planned before anything is merged: a plan treats what an earlier document is going to write as a model
that is there. An interrupted run finds the finished directories again. They are removed when the output is complete.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from . import system
from .errors import OutputError
from .models.coming import ComingCheckpoint
from .models.documents import MANIFEST_LIMIT
from .models.names import MANIFEST
from .models.reference import ModelRef
from .plan.file_plan import Plan, make_plan
from .recipe import Recipe


def plans(recipe: Recipe, *, seed: int, shard_size: int) -> list[Plan]:
    """The plan of each document, in the order in which they are merged. None of their results need be there.

    Raises UsageError or CheckpointError, as `make_plan` does, before anything is merged. The caller closes the plans.
    """
    made: list[Plan] = []
    coming: dict[str, ComingCheckpoint] = {}
    try:
        for name, document in [*recipe.stages, ("", recipe)]:
            plan = make_plan(document, seed=seed, shard_size=shard_size, coming=coming)
            made.append(plan)
            # Its files are called after what decides their content, so that fingerprints of later documents have that.
            shards = [(f"{plan.fingerprint()}/{shard.name}", shard.nbytes) for shard in plan.shards]
            source, files = plan.metadata_source.path, plan.sidecars.ready
            coming[name] = ComingCheckpoint(
                ModelRef(name), source, plan.layout, plan.shard_of, shards, plan.config, files
            )
    except BaseException:
        close(made)
        raise
    return made


def close(made: list[Plan]) -> None:
    for plan in made:
        plan.close()


def scratch_of(out: Path) -> Path:
    """Where the results of the named documents are kept."""
    return out.parent / f".{out.name}.documents"


def is_of(out: Path, fingerprint: str) -> bool:
    """Whether the output's manifest says that it is of this merge."""
    with contextlib.suppress(OSError, ValueError):
        return f'"{fingerprint}"' in system.read_file(out / MANIFEST, MANIFEST_LIMIT).decode()
    return False


def merge_stages(recipe: Recipe, out: Path, merge: Callable[[Recipe, Path], object]) -> Recipe:
    """Merges the named documents.

    Args:
        recipe: the last document, with the others as its stages.
        out: the output directory of the last one.
        merge: merges a recipe into a directory; keeps what is finished there.

    Returns:
        The last document, with directories in place of names.
    """
    scratch = scratch_of(out)
    try:
        system.make_directories(scratch, sync=False)
    except OSError as error:
        raise OutputError(f"cannot make the directory {scratch}: {error.strerror}.") from None
    placed: dict[str, Path] = {}
    for number, (name, document) in enumerate(recipe.stages):
        place = scratch / str(number)
        merge(document.located(placed), place)
        placed[name] = place
    return recipe.located(placed)


def remove_scratch(out: Path) -> None:
    """After the last document is published. What cannot be removed stays: the output is complete."""
    with contextlib.suppress(OSError):
        system.remove(scratch_of(out))
