"""The small files of the output: sidecar files of the metadata source, model card, manifest."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ..dtypes import DType
from ..errors import CheckpointError

if TYPE_CHECKING:
    from ..plan.file_plan import Plan

MANIFEST = "warpmerge.json"
CARD = "README.md"
LARGEST = 256 << 20  # bytes; a larger file is data, not part of a model
COPIED_SUFFIXES = {".json", ".jinja", ".model", ".txt", ".tiktoken", ".bpe", ".vocab", ".py"}
NOT_COPIED = {
    CARD,
    MANIFEST,
    "config.json",
    "trainer_state.json",
    "adapter_config.json",
    "quantize_config.json",
}


def auxiliary(directory: Path) -> list[Path]:
    """The files of a model that a merge takes over as they are."""
    return [
        path
        for path in sorted(directory.iterdir())
        if path.suffix in COPIED_SUFFIXES
        and path.name not in NOT_COPIED
        and not path.name.endswith(".index.json")
        and path.is_file()
        and path.stat().st_size <= LARGEST
    ]


def sidecars(directory: Path, config: dict[str, Any], dtype: DType | None) -> dict[str, bytes]:
    """Files that the output takes over: tokenizer, chat template, generation config, custom code, and the config with
    the output's dtype. Raises CheckpointError if one cannot be read."""
    try:
        files = {path.name: path.read_bytes() for path in auxiliary(directory)}
    except OSError as error:
        raise CheckpointError(f"cannot read {error.filename or directory}: {error.strerror}.") from None
    if config:
        files["config.json"] = (json.dumps(_with_dtype(config, dtype), indent=2) + "\n").encode()
    return files


def _with_dtype(config: dict[str, Any], dtype: DType | None) -> dict[str, Any]:
    """The config with the dtype in place of its own; parts of a multimodal model have one each."""
    if dtype is None:
        return config
    config = {k: _with_dtype(v, dtype) if isinstance(v, dict) and _dtypes(v) else v for k, v in config.items()}
    return config | dict.fromkeys(_dtypes(config) or ["torch_dtype"], dtype.name)


def _dtypes(config: dict[str, Any]) -> list[str]:
    return [key for key in ("torch_dtype", "dtype") if key in config]


def card(plan: Plan) -> bytes:
    """The model card: the models and the recipe."""
    recipe = plan.recipe
    base = [recipe.base] if recipe.base else []
    models = list(dict.fromkeys([*base, *(m.ref for m in recipe.models)]))
    front = {"base_model": [str(m) for m in models], "library_name": "transformers", "tags": ["merge", "warpmerge"]}
    paper = f" ({recipe.method.paper})" if recipe.method.paper else ""
    text = f"""---
{yaml.safe_dump(front, sort_keys=False, allow_unicode=True, width=1000)}---

# Merged model

Made by [warpmerge](https://pypi.org/project/warpmerge/) with the method `{recipe.method.name}`{paper}.

Models:

{chr(10).join(f"- {m}{' (base)' if m == recipe.base else ''}" for m in models)}

Recipe:

```yaml
{recipe.to_yaml().rstrip()}
```

Seed {plan.seed}. `warpmerge verify` checks the weights against `{MANIFEST}`.
"""
    return text.encode(errors="backslashreplace")  # paths need not be Unicode


def manifest(plan: Plan, version: str, digests: Sequence[int]) -> bytes:
    """The manifest: recipe, inputs, and the digest of each tensor (docs/numerics.md defines it)."""
    roles = {id(c): {"auxiliary tensor": label} for label, c in plan.auxiliary.items()}
    document = {
        "warpmerge": version,
        "method": plan.recipe.method.name,
        "recipe": json.loads(json.dumps(dict(plan.recipe.source), default=str)),
        "seed": plan.seed,
        "inputs": [
            {
                "model": str(c),
                **roles.get(id(c), {}),
                "path": str(c.path.resolve()),
                "files": [{"name": s.path.name, "bytes": s.size, "mtime_ns": s.identity.mtime_ns} for s in c.shards],
            }
            for c in plan.checkpoints
        ],
        "files": sorted({CARD, MANIFEST, "config.json", *(p.name for p in auxiliary(plan.metadata_source.path))}),
        "shards": [{"name": s.name, "bytes": s.nbytes} for s in plan.shards],
    }
    text = json.dumps(document, indent=1).removesuffix("\n}")
    return f'{text},\n "tensors": {_tensors(plan, digests)}\n}}\n'.encode()


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
