"""The merges that are disturbed, and what must be true of them whatever happens.

A `Workplace` is a folder with the inputs of one merge, its output, and what the output must be: the bytes of an
undisturbed run. `check` says what is wrong with the output now; an empty list is what we want.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import warpmerge as wm
from helpers import looks_complete, write_model, write_recipe

from torture.crash_states import Tree, lay_out, read

STAGING = ".warpmerge-partial"
OWN = {"notes.md": b"a file of the user's own"}  # in an output that is overwritten: it stays
BESIDE = {
    "tokenizer.json": '{"version": "1.0"}',
    "chat_template.jinja": "{{ messages }}",
    "README.md": "the base's own card",
}


@dataclass(frozen=True)
class Scenario:
    """A merge. `old`: the output holds another merge's model before, which this one overwrites."""

    method: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    shards: int = 3
    sync: bool = True
    old: bool = False
    threads: int = 1
    base: bool = True

    def __str__(self) -> str:
        parts = [self.method, f"{self.shards}-shards", "sync" if self.sync else "no-sync"]
        return "-".join([*parts, *["overwrite"] * self.old, *[f"{self.threads}-threads"] * (self.threads > 1)])


TIES = {"weight": 0.5, "density": 0.5}
SCENARIOS = [
    Scenario("ties", TIES),  # two passes
    Scenario("linear", {"weight": 0.4}, sync=False, base=False),
    Scenario("ties", TIES, old=True),
    Scenario("dare_linear", {"weight": 0.5, "density": 0.5}, shards=2, sync=False, old=True),
    Scenario("karcher", shards=1, base=False),
    Scenario("linear", {"weight": 0.4}, shards=1, sync=False, old=True, base=False),
    Scenario("della", {"weight": 0.5, "density": 0.6, "epsilon": 0.2}, shards=2, threads=2),
    Scenario("model_stock", shards=2, old=True, threads=2),
]


def named(text: str) -> Scenario:
    """The scenario of a name. Raises KeyError."""
    return {str(scenario): scenario for scenario in SCENARIOS}[text]


def tensors(seed: int) -> dict[str, np.ndarray]:
    """Five small tensors; a page and a bit of them in the largest."""
    rng = np.random.default_rng(seed)
    shapes = {
        "embed.weight": (64, 20),
        "a.weight": (16, 16),
        "a.bias": (16,),
        "b.weight": (16, 33),
        "norm.weight": (7,),
    }
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


class Workplace:
    """The folder of a scenario: inputs in `in`, the output in `out`. Nothing else writes to either."""

    def __init__(self, folder: Path, scenario: Scenario) -> None:
        self.folder, self.scenario = folder, scenario
        self.inputs, self.out = folder / "in", folder / "out"
        for seed, name in enumerate(["base", "one", "two", "three"]):
            beside = BESIDE if name in ("base", "one") else {}
            write_model(self.inputs / name, tensors(seed), shards=1 + seed % 3, files=beside)
        write_recipe(self.inputs / "recipe.yml", self._recipe())
        self._inputs_before = digest(self.inputs)
        self.before: Tree = self._old_model() if scenario.old else {}
        self.restore({})
        self.merge(overwrite=False)
        written = read(self.out)
        assert sum(name.endswith(".safetensors") for name in written) == scenario.shards
        mine = OWN if scenario.old else {}
        self.right: Tree = {**written, **mine}
        self.restore()

    def _old_model(self) -> Tree:
        old = {"merge_method": "linear", "models": self._models(2), "parameters": {"weight": 0.3}}
        wm.merge(old, self.out, shard_size="2kB", threads=1, sync=False, backend="cpu")
        lay_out({f"out/{name}": data for name, data in OWN.items()}, self.folder)
        return {"out": None, **{f"out/{name}": data for name, data in read(self.out).items()}}

    def _models(self, count: int) -> list[str]:
        return [str(self.inputs / name) for name in ("one", "two", "three")[:count]]

    def restore(self, tree: Tree | None = None) -> None:
        """Puts the output into a state: that of before the merge, or another."""
        shutil.rmtree(self.out, ignore_errors=True)
        lay_out(self.before if tree is None else tree, self.out.parent)

    def state(self) -> dict[str, bytes | None]:
        """What the output holds now, for `restore`."""
        if not self.out.exists():
            return {}
        return {"out": None, **{f"out/{name}": data for name, data in read(self.out).items()}}

    def _recipe(self) -> dict[str, Any]:
        scenario = self.scenario
        recipe = {
            "merge_method": scenario.method,
            "models": self._models(3),
            "parameters": dict(scenario.parameters),
        }
        if scenario.base:
            recipe["base_model"] = str(self.inputs / "base")
        return recipe

    def options(self, *, resume: bool = False, overwrite: bool | None = None) -> dict[str, Any]:
        scenario = self.scenario
        return {
            "shard_size": {1: "1MB", 2: "5500", 3: "2500"}[scenario.shards],
            "threads": scenario.threads,
            "sync": scenario.sync,
            "overwrite": scenario.old if overwrite is None else overwrite,
            "resume": resume,
            "backend": "cpu",
        }

    def merge(self, **options: bool) -> wm.MergeReport:
        return wm.merge(self.inputs / "recipe.yml", self.out, **self.options(**options))

    # What must be true.

    def check(self, *, complete: bool = True) -> list[str]:
        """What is wrong with the output, for a run that may have failed. `complete`: what looks complete must be."""
        wrong = self._inputs_changed()
        found = visible(self.out)
        if complete and looks_complete(self.out) and found not in (visible_of(self.before), self.right):
            wrong.append(f"the output looks complete, but {difference(found, self.right)}")
        if self.scenario.old and any(found.get(name) != data for name, data in OWN.items()):
            wrong.append("a file of the user's own is gone or changed")
        return wrong

    def check_finished(self, *, disturbed: bool = False) -> list[str]:
        """What is wrong with the output after a run that reported success. The staging directory of a run that was
        disturbed may be left: the model is complete by then, and a later run removes it."""
        found = visible(self.out) if disturbed else read(self.out)
        wrong = [] if found == self.right else [f"success was reported, but {difference(found, self.right)}"]
        return self._inputs_changed() + wrong

    def check_repeated(self, *, resume: bool) -> list[str]:
        """Runs the merge again, undisturbed, and says what is wrong then. Without `resume` the run is refused where it
        may not touch what lies in the output, and says what to do."""
        how = "with --resume" if resume else "again"
        taken = not self.scenario.old and bool(visible(self.out))
        try:
            self.merge(resume=resume)
        except wm.OutputError as error:
            if taken and not resume and "--overwrite" in str(error):
                return []
            return [f"run {how}: {error}"]
        except Exception as error:
            return [f"run {how}: {type(error).__name__}: {error}"]
        return [f"run {how}: {problem}" for problem in self.check_finished()]

    def check_both_ways_on(self) -> list[str]:
        """What is wrong when the merge is run again from here, with --resume and without."""
        state = self.state()
        wrong = self.check_repeated(resume=True)
        self.restore(state)
        return wrong + self.check_repeated(resume=False)

    def _inputs_changed(self) -> list[str]:
        return [] if digest(self.inputs) == self._inputs_before else ["an input has changed"]


def visible(out: Path) -> dict[str, bytes | None]:
    """What an output holds, without what is being made."""
    return {name: data for name, data in read(out).items() if not name.startswith(STAGING)} if out.exists() else {}


def visible_of(tree: Tree) -> dict[str, bytes | None]:
    return {path.removeprefix("out/"): data for path, data in tree.items() if path != "out"}


def digest(folder: Path) -> str:
    whole = hashlib.sha256()
    for name, data in read(folder).items():
        whole.update(f"{name}\0{data is None}\0{len(data or b'')}\0".encode() + (data or b""))
    return whole.hexdigest()


def difference(found: Tree, right: Tree) -> str:
    """In words, the first few files that differ."""
    lines = [f"{name} is missing" for name in sorted(right.keys() - found.keys())]
    lines += [f"{name} is too much" for name in sorted(found.keys() - right.keys())]
    lines += [f"{name} is wrong" for name in sorted(found.keys() & right.keys()) if found[name] != right[name]]
    return ", ".join(lines[:4]) or "nothing differs"


@contextlib.contextmanager
def workplace(scenario: Scenario, folder: Path):
    """A `Workplace` in a folder that is removed afterwards."""
    place = folder / str(scenario)
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    try:
        yield Workplace(place, scenario)
    finally:
        shutil.rmtree(place, ignore_errors=True)
