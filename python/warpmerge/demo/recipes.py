"""The merges of the demo, as mergekit recipes: one of each common kind, over all fine-tunes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

# Parameters of each model, parameters of the merge. With three fine-tunes the mean loss is flat between
# weights of 0.33 and 0.5 and rises beyond, where the deltas begin to interfere.
METHODS: dict[str, tuple[dict[str, float], dict[str, Any]]] = {
    "linear": ({"weight": 1.0}, {"normalize": True}),
    "task_arithmetic": ({"weight": 0.4}, {"normalize": False}),
    "ties": ({"weight": 0.45, "density": 0.5}, {"normalize": False}),
    "dare_ties": ({"weight": 0.4, "density": 0.5}, {"normalize": False}),
}


def recipe(method: str, base: Path, models: list[Path]) -> dict[str, Any]:
    """The recipe of one merge; paths are absolute, so that it runs from any directory."""
    per_model, overall = METHODS[method]
    head: dict[str, Any] = {"merge_method": method}
    if method != "linear":  # a mean of models: no deltas, so no base
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
