"""The merges that are benchmarked: recipes, the bytes they read and write, and what they should reach."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .checkpoints import CheckpointSet

WEIGHTS = (0.5, 0.3, 0.2)
DENSITY = 0.5
SLERP_T = 0.3
TARGET_SHAPE = "qwen2.5-0.5b"  # what the targets below are about


# What a warm merge may take, times cat+cp, by what a method has to do.
ONE_PASS, TWO_PASSES, MORE = 1.0, 1.6, 2.5


@dataclass(frozen=True)
class Method:
    """`parameters` are those for all models, `each` those of one model beside its weight."""

    name: str
    reach: float | None  # times cat+cp, warm, TARGET_SHAPE in bf16, two cores
    aim: float | None = None
    base: bool = True
    models: int = 3
    weighted: bool = True
    parameters: Mapping[str, Any] = field(default_factory=dict)
    each: Mapping[str, Any] = field(default_factory=dict)
    endpoint: bool = False  # the base is listed among the models
    companion: str = ""  # the parameter that names what each model has beside its weights
    method: str = ""  # its name in recipes, where a method is measured in several ways

    @property
    def known(self) -> str:
        return self.method or self.name


def _named(*methods: Method) -> dict[str, Method]:
    return {method.name: method for method in methods}


_DENSITY = {"density": DENSITY}
METHODS = _named(
    Method("linear", 0.9, 0.6, base=False),
    Method("task_arithmetic", 0.9, 0.6),
    Method("dare_linear", 1.3, 0.9, each=_DENSITY),
    Method("dare_ties", 1.3, 0.9, each=_DENSITY),
    Method("slerp", 1.3, 0.9, models=1, weighted=False, parameters={"t": SLERP_T}, endpoint=True),
    Method("ties", 1.5, 1.1, each=_DENSITY),
    Method("passthrough", None, base=False, models=1, weighted=False),
)


def _plain(name: str, reach: float | None, **more: Any) -> Method:
    return Method(name, reach, weighted=False, **more)


# Every other method, warm only. Beyond the default scope a name says what is measured.
FURTHER = _named(
    _plain("expo", ONE_PASS, models=1, parameters={"alpha": 0.3}),
    _plain("ema", ONE_PASS, base=False, parameters={"decay": 0.7}),
    _plain("lawa", ONE_PASS, base=False),
    _plain("nearswap", ONE_PASS, models=1, parameters={"t": 1e-3}),
    _plain("magmax", ONE_PASS),
    _plain("ram", ONE_PASS),
    _plain("consensus_ta", ONE_PASS),
    _plain("fisher", ONE_PASS, base=False, companion="fisher"),
    _plain("median", ONE_PASS, base=False),
    _plain("trimmed_mean", ONE_PASS, base=False, parameters={"beta": 0.34}),
    _plain("emr", TWO_PASSES),
    _plain("ramplus_tl", TWO_PASSES),
    Method("nuslerp", TWO_PASSES, models=2),
    Method("nuslerp, rows", MORE, models=2, parameters={"nuslerp_flatten": False}, method="nuslerp"),
    Method("multislerp", TWO_PASSES),
    _plain("karcher", TWO_PASSES, base=False),
    _plain("model_stock", TWO_PASSES),
    _plain("model_stock, rows", MORE, parameters={"filter_wise": True}, method="model_stock"),
    _plain("krum", TWO_PASSES, base=False),
    _plain("multi_krum", TWO_PASSES, base=False),
    _plain("geometric_median", TWO_PASSES, base=False),
    _plain("norm_clipped_mean", TWO_PASSES),
    Method("breadcrumbs", TWO_PASSES, each=_DENSITY),
    Method("breadcrumbs_ties", TWO_PASSES, each=_DENSITY),
    Method("ties, model", MORE, parameters={"scope": "model"}, each=_DENSITY, method="ties"),
    _plain("sce", MORE, parameters={"select_topk": 0.5}),
    Method("della", MORE, each=_DENSITY),
    Method("della_linear", MORE, each=_DENSITY),
    _plain("pcb", MORE),
    _plain("arcee_fusion", MORE, models=1),
    _plain("widen", MORE),
)


@dataclass(frozen=True)
class Case:
    """One recipe over one set of checkpoints."""

    method: Method
    recipe: Path
    inputs: tuple[Path, ...]  # model directories, each once, the base first
    base: Path | None
    models: tuple[Path, ...]
    weights: tuple[float, ...]
    auxiliary: tuple[Path, ...] = ()  # checkpoints that are read beside the inputs

    @property
    def template(self) -> Path:
        """The directory whose tensors have the output's names, shapes and dtype."""
        return self.inputs[0]

    @property
    def read(self) -> list[Path]:
        return [shard for folder in (*self.inputs, *self.auxiliary) for shard in shards(folder)]

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
    auxiliary: Sequence[Path] = (),
    **top_level: Any,
) -> Case:
    """Writes the recipe of a method into `folder`.

    auxiliary tensors: one checkpoint per model, where the method takes them. top_level: further keys such as `dtype`.
    """
    method = METHODS.get(name) or FURTHER[name]
    chosen = checkpoints.models[: method.models if models is None else models]
    base = checkpoints.base if method.base else None
    recipe: dict[str, Any] = {"merge_method": method.known, **top_level, "parameters": dict(method.parameters)}
    if base:
        recipe["base_model"] = str(base)
    each = [{**method.each, **({"weight": weight} if method.weighted else {})} for weight in weights]
    for own, path in zip(each, auxiliary, strict=False):
        own[method.companion] = str(path)
    recipe["models"] = [{"model": str(path), "parameters": own} for path, own in zip(chosen, each, strict=False)]
    if method.endpoint:
        recipe["models"].insert(0, {"model": str(checkpoints.base)})
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name.replace(', ', '-')}.yml"
    path.write_text(json.dumps(recipe, indent=2) + "\n")  # JSON is YAML
    inputs = (base, *chosen) if base else chosen
    return Case(method, path, inputs, base, chosen, tuple(weights[: len(chosen)]), tuple(auxiliary))
