"""The small files of the output: what it takes over from the metadata source, model card, manifest.

All of them are read and rendered when the plan is made. What cannot be read or written shows before the first weight.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__, system
from ..dtypes import DType
from .card import card
from .checkpoint import Checkpoint
from .companions import Companion, companions, located
from .names import CARD, CONFIG, MANIFEST, RECIPE, is_tokenizer_file

if TYPE_CHECKING:
    from ..plan.file_plan import Plan

Content = bytes | Companion  # of a file of the output


def write(path: Path, content: Content, *, sync: bool) -> None:
    """Makes a small file of the output. Raises OSError, and CheckpointError if a companion has changed."""
    if isinstance(content, Companion):
        content.copy_to(path, sync=sync)
    else:
        system.write_file(path, content, sync=sync)


def taken_over(model: Checkpoint, dtype: DType | None, config: dict[str, Any] | None = None) -> dict[str, Content]:
    """The files that an output takes over from a model: companions, and the config with the output's dtype.

    Args:
        model: the model.
        dtype: the dtype of the output. None: that of the config stays.
        config: the config of the output. None: that of the model.

    Returns:
        The files by name.

    Raises:
        CheckpointError: a file cannot be read, or lies outside of the model's directory.
    """
    files: dict[str, Content] = {**companions(model.path)}
    config = model.config() if config is None else config
    if config:
        located(model.path / CONFIG)
        files[CONFIG] = (json.dumps(_with_dtype(config, dtype), indent=2) + "\n").encode()
    return files


def _with_dtype(config: dict[str, Any], dtype: DType | None) -> dict[str, Any]:
    """The config with the dtype in place of its own; parts of a multimodal model have one each."""
    if dtype is None:
        return config
    config = {k: _with_dtype(v, dtype) if isinstance(v, dict) and _dtypes(v) else v for k, v in config.items()}
    return config | dict.fromkeys(_dtypes(config) or ["torch_dtype"], dtype.name)


def _dtypes(config: dict[str, Any]) -> list[str]:
    return [key for key in ("torch_dtype", "dtype") if key in config]


@dataclass(frozen=True)
class Sidecars:
    """The small files of a merge's output. Only the digests of the tensors are missing.

    Attributes:
        ready: the files that are complete, by name: companions, config, model card.
        frame: the manifest without tensors.
    """

    ready: Mapping[str, Content]
    frame: str


def sidecars(plan: Plan) -> Sidecars:
    """Reads and renders the small files. Raises CheckpointError as `taken_over` does."""
    dtypes = plan.dtypes
    main = max((d for d in dtypes if d.is_float), key=lambda d: dtypes[d], default=None)
    ours = {CARD: card(plan.recipe, plan.seed), RECIPE: plan.recipe.to_yaml().encode()}
    theirs = taken_over(plan.metadata_source, main, plan.config)
    if plan.tokenizer.files is not None:
        rest = {name: file for name, file in theirs.items() if not is_tokenizer_file(name)}
        theirs = rest | dict(plan.tokenizer.files)
    ready = theirs | ours
    frame = json.dumps(_frame(plan, sorted({MANIFEST, *ready})), indent=1, allow_nan=False)
    return Sidecars(ready, frame)


def manifest(plan: Plan, digests: Sequence[int]) -> dict[str, Content]:
    """The manifest: recipe, inputs, and the digest of each tensor (docs/numerics.md defines it)."""
    frame = plan.sidecars.frame.removesuffix("\n}")
    return {MANIFEST: f'{frame},\n "tensors": {_tensors(plan, digests)}\n}}\n'.encode()}


def _frame(plan: Plan, files: Sequence[str]) -> dict[str, Any]:
    """The manifest without tensors."""
    roles = {id(c): {"auxiliary tensor": label} for label, c in plan.auxiliary.items()}
    return {
        "warpmerge": __version__,
        "method": plan.recipe.method.name,
        "recipe": _finite(plan.recipe.source),
        "seed": plan.seed,
        "fingerprint": plan.fingerprint(),
        "inputs": [
            {
                "model": str(part),
                **roles.get(id(part), {}),
                "path": str(part.path.resolve()),
                "files": [
                    {
                        "name": f.path.name,
                        "bytes": f.identity.size,
                        "mtime_ns": f.identity.mtime_ns,
                        **f.digests,
                    }
                    for f in part.files
                ],
            }
            for part in plan.parts
        ],
        "files": files,
        "shards": [{"name": s.name, "bytes": s.nbytes} for s in plan.shards],
    }


def _finite(value: Any) -> Any:
    """A recipe's values with infinities as text, `inf`, since JSON has none. Recipes take that text as well."""
    if isinstance(value, Mapping):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _tensors(plan: Plan, digests: Sequence[int]) -> str:
    """The text that json.dumps makes with an indent of 1, ten times as fast: common parts are formatted once."""
    jobs = plan.jobs
    common: dict[tuple, str] = {}
    written = []
    for name, shape, number, shard, digest in zip(
        jobs.names, jobs.shapes, jobs.group_of, plan.shard_of, digests, strict=True
    ):
        key = shard, number, shape
        if key not in common:
            group = jobs.groups[number]
            fields = {
                "shard": plan.shards[shard].name,
                "dtype": group.out_dtype.name,
                "shape": list(shape),
                "method": "copy" if group.method is None else group.method.name,
            }
            common[key] = json.dumps(fields, indent=1).removesuffix("\n}").replace("\n", "\n  ")
        written.append(f'\n  {_quoted(name)}: {common[key]},\n   "digest": "{digest:016x}"\n  }}')
    return "{" + ",".join(written) + "\n }" if written else "{}"


_quoted = json.encoder.encode_basestring_ascii
