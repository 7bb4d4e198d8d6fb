"""Options and fixtures of the benchmarks. Nothing here fails because something was slow."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from . import machine
from .cases import TARGET_SHAPE, Method
from .checkpoints import CheckpointSet, Settings, make, make_fisher
from .pagecache import NotControlled
from .shapes import SHAPES

MACHINE = pytest.StashKey[dict[str, Any]]()


def bench_dir() -> Path:
    """Where checkpoints are made and merged: `WARPMERGE_BENCH_DIR`, by default build/bench. Needs 10 GB."""
    return Path(os.environ.get("WARPMERGE_BENCH_DIR") or machine.ROOT / "build" / "bench").resolve()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("warpmerge benchmarks")
    group.addoption("--shape", default=TARGET_SHAPE, choices=sorted(SHAPES), help="the model that is merged")
    group.addoption("--rounds", type=int, default=5, help="of a merge and its baseline (cold: at most 3)")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("python_files", "bench_*.py")
    config.stash[MACHINE] = machine.describe()  # now: afterwards the load would be our own


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A merge of a large model by a slow tool may take longer than any test should."""
    if config.pluginmanager.hasplugin("timeout"):
        for item in items:
            if item.path.is_relative_to(Path(__file__).parent):
                item.add_marker(pytest.mark.timeout(3600))


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["warpmerge"] = config.stash[MACHINE]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """A machine that cannot keep the inputs in memory, or out of it, cannot run that regime."""
    try:
        return (yield)
    except NotControlled as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def checkpoints() -> Callable[..., CheckpointSet]:
    """Makes (or reuses) a set of checkpoints: `checkpoints("moe", models=3, dtype="bf16")`."""

    def make_set(shape: str, **settings: Any) -> CheckpointSet:
        chosen = replace(Settings(shape), **settings)
        suffix = "".join(f"-{value}" for value in settings.values() if isinstance(value, str))
        return make(chosen, bench_dir() / f"{shape}{suffix}")

    return make_set


@pytest.fixture(scope="session")
def auxiliary() -> Callable[..., tuple[Path, ...]]:
    """Makes (or reuses) what a method needs beside the models of a shape: Fisher informations, or nothing."""

    def of(shape: str, method: Method) -> tuple[Path, ...]:
        return make_fisher(Settings(shape), bench_dir() / f"{shape}-fisher") if method.companion == "fisher" else ()

    return of


@pytest.fixture
def scratch() -> Iterator[Path]:
    """An empty folder on the file system of the checkpoints, removed afterwards."""
    folder = bench_dir() / "scratch"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
