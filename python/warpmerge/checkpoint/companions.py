"""The small files beside the weights: config, tokenizer, model card, manifest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..dtypes import DType

if TYPE_CHECKING:
    from ..plan import Plan

MANIFEST = "warpmerge.json"
CARD = "README.md"
COPIED_SUFFIXES = {".json", ".jinja", ".model", ".txt", ".tiktoken", ".bpe", ".vocab", ".py"}
NOT_COPIED = {
    CARD,
    MANIFEST,
    "config.json",
    "trainer_state.json",
    "adapter_config.json",
    "quantize_config.json",
}


def donated(directory: Path, config: dict[str, Any], dtype: DType | None) -> dict[str, bytes]:
    """Files that the output takes over: tokenizer, chat template, generation config, custom code, and the config with
    the output's dtype."""
    files = {}
    for path in sorted(directory.iterdir()):
        index = path.name.endswith(".index.json")
        if path.is_file() and path.suffix in COPIED_SUFFIXES and path.name not in NOT_COPIED and not index:
            files[path.name] = path.read_bytes()
    if config:
        config = dict(config)
        key = "torch_dtype" if "torch_dtype" in config else "dtype"
        if dtype is not None:
            config[key] = dtype.name
        files["config.json"] = (json.dumps(config, indent=2) + "\n").encode()
    return files


def card(plan: Plan) -> bytes:
    """A model card that says what was merged and how."""
    method = plan.recipe.method
    models = [m.ref for m in plan.recipe.models]
    names = [str(r) for r in dict.fromkeys([*([plan.recipe.base] if plan.recipe.base else []), *models])]
    front = ["---", "base_model:", *(f"- {json.dumps(n)}" for n in names), "library_name: transformers"]
    front += ["tags:", "- merge", "- warpmerge", "---"]
    body = [
        "",
        "# Merged model",
        "",
        f"Made by [warpmerge](https://pypi.org/project/warpmerge/) with the method `{method.name}`"
        + (f" ({method.paper})." if method.paper else "."),
        "",
        "Models:",
        "",
        *(f"- {r}{' (base)' if r == plan.recipe.base else ''}" for r in names_with_base(plan)),
        "",
        "Recipe:",
        "",
        "```yaml",
        plan.recipe.to_yaml().rstrip(),
        "```",
        "",
        f"Seed {plan.seed}. `warpmerge verify` checks the weights against `{MANIFEST}`.",
        "",
    ]
    return "\n".join([*front, *body]).encode()


def names_with_base(plan: Plan) -> list[Any]:
    base = [plan.recipe.base] if plan.recipe.base else []
    return list(dict.fromkeys([*base, *(m.ref for m in plan.recipe.models)]))


def manifest(plan: Plan, version: str, digests: dict[str, str]) -> bytes:
    """What was merged from what, and each tensor's digest (docs/numerics.md says how it is taken)."""
    document = {
        "warpmerge": version,
        "method": plan.recipe.method.name,
        "recipe": json.loads(json.dumps(dict(plan.recipe.source), default=str)),
        "seed": plan.seed,
        "inputs": [
            {
                "model": str(c),
                "path": str(c.path.resolve()),
                "files": [{"name": s.path.name, "bytes": s.size, "mtime_ns": s.mtime_ns} for s in c.shards],
            }
            for c in plan.checkpoints
        ],
        "shards": [{"name": s.name, "bytes": s.nbytes} for s in plan.shards],
        "tensors": {
            job.name: {
                "shard": plan.shards[job.shard].name,
                "dtype": job.dtype.name,
                "shape": list(job.shape),
                "method": plan.recipe.method.name if job.values is not None else "copy",
                "digest": digests[job.name],
            }
            for job in plan.jobs
        },
    }
    return (json.dumps(document, indent=1) + "\n").encode()
