"""The demo from beginning to end: text, training, merges, losses, verdict."""

from __future__ import annotations

import platform
import shlex
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from . import SECONDS, checkpoint, recipes, text
from .model import Config, Llama
from .result import LABEL, DemoResult, Merge, Row
from .train import Schedule, evaluate, one_thread, train
from .workspace import Workspace

Echo = Callable[[str], Any]

# Steps of the base and of each fine-tune. A base that is trained for longer, or annealed, is almost as good on the mix
# as any merge: after 600 annealed steps the best merge gains 0.014. The fine-tunes of a base that is trained for less
# drift apart: after 200 + 3 x 200 steps a weight above 0.5 gains nothing.
BASE_STEPS, BASE_RATE = 400, 4e-3
TUNE_STEPS, TUNE_RATE = 150, 1e-3


def tell(directory: Path, seconds: float, echo: Echo) -> DemoResult:
    """Runs the whole demo, with about this many seconds of training."""
    started = time.perf_counter()
    config, domains = Config(), text.load()
    names = tuple(domain.name for domain in domains)
    plan = schedules(names, seconds / SECONDS)
    settings = {
        "model": asdict(config),
        "training": {name: asdict(schedule) for name, schedule in plan.items()},
        "text": text.digest(domains),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    space = Workspace(directory, settings)
    result = DemoResult(directory, names)
    sizes = ", ".join(f"{domain.name} {len(domain.train) / 1000:.0f} kB" for domain in domains)
    echo(f"Text, from this Python's standard library: {sizes}")
    echo(f"Model: a Llama with {config.num_hidden_layers} layers of width {config.hidden_size}, saved in bf16")
    with one_thread():
        echo(
            f"\nTraining a base on all texts and a fine-tune on each, about {seconds:.0f} s, in {directory / 'models'}"
        )
        train_models(space, config, domains, plan, echo)
        echo(f"\nMerging the {len(names)} fine-tunes, into {directory / 'merged'}")
        merge_models(space, result, echo)
        evaluate_models(space, config, domains, result)

    echo(f"\nLoss on text that no model was trained on, in nats per byte; lower is better\n{result.table}\n")
    for problem in result.problems:
        echo(f"Problem: {problem}.")
    echo(f"{result.verdict} The demo took {time.perf_counter() - started:.0f} s.")
    echo(f"To merge again: warpmerge merge {shlex.quote(str(space.recipe(result.best_merge.model)))} OUT_DIR")
    return result


def schedules(domains: tuple[str, ...], scale: float) -> dict[str, Schedule]:
    """How the base and each fine-tune are trained, by name. The seed is the position in this list."""
    base_steps, tune_steps = (max(5, round(scale * steps)) for steps in (BASE_STEPS, TUNE_STEPS))
    plan = {"base": Schedule(base_steps, BASE_RATE, anneal=False, seed=0)}
    for seed, name in enumerate(domains, start=1):
        plan[name] = Schedule(tune_steps, TUNE_RATE, anneal=True, seed=seed)
    return plan


def train_models(
    space: Workspace, config: Config, domains: list[text.Domain], plan: dict[str, Schedule], echo: Echo
) -> None:
    """Trains the base on all domains, then one fine-tune per domain from the saved base."""
    texts = {domain.name: [domain.train] for domain in domains}
    texts["base"] = [domain.train for domain in domains]
    for name, schedule in plan.items():
        label = f"{name:<{LABEL}}"
        if space.has(name):
            echo(f"{label}from an earlier run, used again")
            continue
        started = time.perf_counter()
        if name == "base":
            model = Llama(config, torch.Generator().manual_seed(schedule.seed))
        else:
            model = checkpoint.load(space.model("base"), config)
        loss = train(model, texts[name], schedule)
        checkpoint.save(model, config, space.model(name))
        space.finished(name)
        echo(f"{label}{time.perf_counter() - started:8.1f} s   {schedule.steps:4d} steps   loss {loss:.3f}")


def merge_models(space: Workspace, result: DemoResult, echo: Echo) -> None:
    """Merges with each recipe through the public function. The output must have the layout of the base."""
    from .. import merge  # here, because the package imports the demo only when it is asked to

    base, models = space.model("base"), [space.model(name) for name in result.domains]
    expected = checkpoint.layout(base)
    for method in recipes.METHODS:
        path, out = space.recipe(method), space.merged(method)
        recipes.write(path, recipes.recipe(method, base, models))
        report = merge(path, out, overwrite=True)
        result.merges.append(Merge(method, report.seconds, report.bytes_read, report.bytes_written))
        echo(str(result.merges[-1]))
        found = checkpoint.layout(out)
        for name in sorted(expected.keys() | found.keys()):
            if (here := found.get(name)) != (there := expected.get(name)):
                result.problems.append(f"{out}: {name} is {here}, but {there} in the base")


def evaluate_models(space: Workspace, config: Config, domains: list[text.Domain], result: DemoResult) -> None:
    """Loads every model from the disk and fills the table of losses."""

    def row(name: str, directory: Path) -> Row:
        model = checkpoint.load(directory, config)
        return Row(name, tuple(evaluate(model, domain.held_out) for domain in domains))

    result.singles.append(row("base", space.model("base")))
    result.singles.extend(row(f"tuned on {name}", space.model(name)) for name in result.domains)
    result.merged.extend(row(method, space.merged(method)) for method in recipes.METHODS)
