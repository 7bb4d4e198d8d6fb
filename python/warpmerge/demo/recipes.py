"""The recipes of the demo: four common methods, each over all fine-tunes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

# Parameters of each model, and of the merge. With three fine-tunes the mean loss is flat for weights from 0.33 to 0.5.
# It rises for larger weights, because the deltas begin to interfere.
METHODS: dict[str, tuple[dict[str, float], dict[str, Any]]] = {
    "linear": ({"weight": 1.0}, {"normalize": True}),
    "task_arithmetic": ({"weight": 0.4}, {"normalize": False}),
    "ties": ({"weight": 0.45, "density": 0.5}, {"normalize": False}),
    "dare_ties": ({"weight": 0.4, "density": 0.5}, {"normalize": False}),
}


def recipe(method: str, base: Path, models: list[Path]) -> dict[str, Any]:
    """The recipe of one merge. Its paths are absolute, so it can be run from any directory."""
    per_model, overall = METHODS[method]
    head: dict[str, Any] = {"merge_method": method}
    if method != "linear":  # linear takes no deltas, so it needs no base
        head["base_model"] = str(base.resolve())
    return {
        **head,
        "models": [{"model": str(model.resolve()), "parameters": dict(per_model)} for model in models],
        "parameters": dict(overall),
        "dtype": "bfloat16",
    }


def write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
