"""What attackers find: a model of two shards, and a finished and a half merge of it. And what users then do."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import warpmerge as wm
from helpers import CONFIG, FILES, contents, file_bytes, header_of, looks_complete, read_model, write_model
from warpmerge.errors import MergeError
from warpmerge.plan.file_plan import make_plan

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
TENSORS = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "b.weight": np.full(4, 0.5, np.float32)}
OUT = "out"


def shard(*names: str) -> bytes:
    return file_bytes(*header_of({name: TENSORS[name] for name in names}))


def build(folder: Path) -> None:
    """The model, and a file outside of it that nobody may read into a merge or remove."""
    write_model(folder / "model", TENSORS, shards=2, config=CONFIG, files={"tokenizer.json": FILES["tokenizer.json"]})
    (folder / "outside.safetensors").write_bytes(shard("b.weight"))


def merge(folder: Path, out: str = OUT, **options) -> None:
    """A merge whose output is its input, in a shard for each tensor."""
    recipe = {"merge_method": "passthrough", "models": [str(folder / "model")]}
    wm.merge(recipe, folder / out, shard_size=1, sync=False, threads=1, backend="cpu", **options)


def interrupted_merge(folder: Path) -> Path:
    """Its journal: a merge has finished all of its shards and was interrupted before it published them."""

    def stop(done, total):
        if done == total:
            raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        merge(folder, progress=stop)
    (journal,) = (folder / OUT).glob("*/journal")
    return journal


class Surprise(AssertionError):
    """Neither a right result nor an error that a user can act on."""


def check_merge(folder: Path, **options) -> None:
    """Merges. The output has what the input has; after an error nothing looks like an output."""
    before = contents(folder / "model")
    try:
        merge(folder, **options)
    except MergeError:
        if looks_complete(folder / OUT):
            raise Surprise("an output looks complete after an error") from None
        raise
    finally:
        if contents(folder / "model") != before:
            raise Surprise("the input was changed")
    if read_model(folder / OUT) != read_model(folder / "model"):
        raise Surprise("the output is wrong")
    if problems := wm.verify(folder / OUT, threads=1).problems:
        raise Surprise(str(problems))


def check_manifest(folder: Path) -> None:
    """Verifies a merge whose manifest is hostile, then replaces it by a good one. Raises what `verify` says."""
    outside = contents(folder)
    try:
        problems = wm.verify(folder / OUT, threads=1).problems
    finally:
        merge(folder, overwrite=True)
        if wm.verify(folder / OUT, threads=1).problems:
            raise Surprise("an output over a hostile manifest is wrong")
        if lost := [name for name in outside if name not in contents(folder)]:
            raise Surprise(f"--overwrite removed {lost}")
    if problems:
        raise wm.CheckpointError("\n".join([f"{folder / OUT / 'warpmerge.json'}:", *problems]))


def check_journal(folder: Path) -> None:
    check_merge(folder, resume=True)


def check_recipe(folder: Path) -> None:
    make_plan(wm.Recipe.load(folder / "recipe.yml")).close()


CHECKS: dict[str, Callable[[Path], None]] = {
    "header": check_merge,
    "index": check_merge,
    "config": check_merge,
    "manifest": check_manifest,
    "journal": check_journal,
    "recipe": check_recipe,
}


def prepare(folder: Path, target: str) -> None:
    """What has to be there before the attacker comes."""
    build(folder)
    if target == "manifest":
        merge(folder)
    elif target == "journal":
        interrupted_merge(folder)
    elif target == "header":
        shutil.rmtree(folder / "model")
        (folder / "model").mkdir()
