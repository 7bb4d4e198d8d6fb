"""The merges that are benchmarked: recipes, the bytes they read and write, and what they should reach."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .checkpoints import CheckpointSet

WEIGHTS = (0.5, 0.3, 0.2)
DENSITY = 0.5
SLERP_T = 0.3
TARGET_SHAPE = "qwen2.5-0.5b"  # what the targets below are about


@dataclass(frozen=True)
class Method:
    name: str
    reach: float | None  # times cat+cp, warm, TARGET_SHAPE in bf16, two cores
    aim: float | None
    base: bool = True
    models: int = 3


METHODS = {
    method.name: method
    for method in (
        Method("linear", 0.9, 0.6, base=False),
        Method("task_arithmetic", 0.9, 0.6),
        Method("dare_linear", 1.3, 0.9),
        Method("dare_ties", 1.3, 0.9),
        Method("slerp", 1.3, 0.9, models=1),
        Method("ties", 1.5, 1.1),
        Method("passthrough", None, None, base=False, models=1),
    )
}


@dataclass(frozen=True)
class Case:
    """One recipe over one set of checkpoints."""

    method: Method
    recipe: Path
    inputs: tuple[Path, ...]  # model directories, each once, the base first
    base: Path | None
    models: tuple[Path, ...]
    weights: tuple[float, ...]

    @property
    def template(self) -> Path:
        """The directory whose tensors have the output's names, shapes and dtype."""
        return self.inputs[0]

    @property
    def read(self) -> list[Path]:
        return [shard for folder in self.inputs for shard in shards(folder)]

    @property
    def copied(self) -> list[Path]:
        return shards(self.template)


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def total_bytes(paths: Sequence[Path]) -> int:
    return sum(path.stat().st_size for path in paths)


def make_case(
    name: str,
    checkpoints: CheckpointSet,
    folder: Path,
    *,
    weights: Sequence[float] = WEIGHTS,
    models: int | None = None,
    **top_level: Any,
) -> Case:
    """Writes the recipe of a method into `folder`; `top_level` are further keys such as `dtype`."""
    method = METHODS[name]
    chosen = checkpoints.models[: method.models if models is None else models]
    base = checkpoints.base if method.base else None
    recipe: dict[str, Any] = {"merge_method": name, **top_level}
    if base:
        recipe["base_model"] = str(base)
    if name == "slerp":
        recipe["models"] = [{"model": str(path)} for path in (checkpoints.base, *chosen)]
        recipe["parameters"] = {"t": SLERP_T}
    elif name == "passthrough":
        recipe["models"] = [{"model": str(path)} for path in chosen]
    else:
        recipe["models"] = [
            {"model": str(path), "parameters": _parameters(name, weight)}
            for path, weight in zip(chosen, weights, strict=False)
        ]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.yml"
    path.write_text(json.dumps(recipe, indent=2) + "\n")  # JSON is YAML
    inputs = (base, *chosen) if base else chosen
    return Case(method, path, inputs, base, chosen, tuple(weights[: len(chosen)]))


def _parameters(method: str, weight: float) -> dict[str, float]:
    if method in ("ties", "dare_linear", "dare_ties"):
        return {"weight": weight, "density": DENSITY}
    return {"weight": weight}
