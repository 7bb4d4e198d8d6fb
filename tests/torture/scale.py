"""Merges of very many things: tensors, shards, models. None may take time that grows with the square of the number."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import warpmerge as wm
from helpers import read_model, write_model

from torture.figures import Figures

LINEAR = {"merge_method": "linear", "parameters": {"weight": 1.0}}
SLACK = 2.0  # times what linear growth gives: of small runs a part is constant, of large ones caches are too small


def _tensors(count: int, seed: int) -> dict[str, np.ndarray]:
    values = np.random.default_rng(seed).integers(-8, 8, (count, 4)).astype(np.float32)
    return {f"layers.{i}.weight": row for i, row in enumerate(values)}


def _merged_in(recipe: dict[str, Any], out: Path, **options: Any) -> float:
    started = time.perf_counter()
    wm.merge(recipe, out, backend="cpu", threads=2, sync=False, **options)
    return time.perf_counter() - started


def _wrong(out: Path, models: list[dict[str, np.ndarray]]) -> list[str]:
    """The inputs are small integers, so their mean of two is exact."""
    found = read_model(out)
    right = {name: np.mean([m[name] for m in models], axis=0, dtype=np.float32).tobytes() for name in models[0]}
    return [] if {name: data for name, (_, _, data) in found.items()} == right else ["the mean is wrong"]


def many_tensors(folder: Path, count: int) -> tuple[float, list[str]]:
    """Seconds for two models of so many tensors."""
    models = [_tensors(count, seed) for seed in range(2)]
    recipe = {**LINEAR, "models": [str(write_model(folder / f"m{i}", m)) for i, m in enumerate(models)]}
    return _merged_in(recipe, folder / "out"), _wrong(folder / "out", models)


def many_shards(folder: Path, count: int) -> tuple[float, list[str]]:
    """Seconds for two models of so many shards of one tensor each."""
    models = [_tensors(count, seed) for seed in range(2)]
    paths = [str(write_model(folder / f"m{i}", m, shards=count)) for i, m in enumerate(models)]
    return _merged_in({**LINEAR, "models": paths}, folder / "out", shard_size="16"), _wrong(folder / "out", models)


def many_models(folder: Path, count: int) -> tuple[float, list[str]]:
    """Seconds for so many models, a power of two, half of them the same."""
    models = [_tensors(4, seed) for seed in range(2)]
    for number in range(count):
        write_model(folder / f"m{number}", models[number % 2])
    recipe = {**LINEAR, "models": [str(folder / f"m{number}") for number in range(count)]}
    return _merged_in(recipe, folder / "out"), _wrong(folder / "out", models)


def grows(what: Any, folder: Path, figures: Figures, few: int, many: int, *, judged: bool = True) -> None:
    """Runs with few and with many, and compares the times. On a machine that does other things as well they say
    nothing: then they are not `judged`."""
    with figures.timed():
        title, seconds, wrong = what.__name__.replace("_", " "), [], []
        for count in (few, many):
            place = folder / f"{what.__name__}-{count}"
            try:
                took, found = what(place, count)
            except Exception as error:
                took, found = float("nan"), [f"{type(error).__name__}: {error}"[:500]]
            shutil.rmtree(place)
            seconds.append(took)
            wrong += [f"{count:,}: {problem}" for problem in found]
        if judged and seconds[1] > SLACK * many / few * max(seconds[0], 0.02):
            wrong.append(f"{many / few:.0f} times as many take {seconds[1] / seconds[0]:.0f} times as long")
        figures.count(f"{title} in {seconds[1]:.1f} s ({few:,}: {seconds[0]:.1f} s)", many)
        figures.add([f"{title}: {problem}" for problem in wrong])
