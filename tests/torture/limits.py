"""Merges that run out of something: address space, descriptors, disk. Each ends right or with a MergeError, and a run
that is resumed with more of it ends right."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import warpmerge as wm
from helpers import looks_complete, write_model

from torture import children
from torture.crash_states import read
from torture.figures import Figures
from torture.merges import Workplace, difference

MIB, PAGE = 1 << 20, 4096


def attempt(recipe: dict, out: str, options: dict) -> str:
    """Merges. Returns "", or the text of a MergeError."""
    try:
        wm.merge(recipe, out, backend="cpu", **options)
    except wm.MergeError as error:
        return str(error)
    return ""


def attempt_within(recipe: dict, out: str, options: dict, room: int) -> str:
    """`attempt` with so many bytes of address space more than the process has when all is imported."""
    wm.merge(recipe, out + "-warm", dry_run=True, backend="cpu", **options)  # imports what it needs
    limit = children.memory_in_use() + room
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    return attempt(recipe, out, options)


def models_of(folder: Path, count: int, mebibytes: int, tensors: int = 4, shards: int = 1) -> dict:
    """Models of this size and the recipe of their mean."""
    rng = np.random.default_rng(0)
    shape = (tensors, mebibytes * MIB // 4 // tensors)
    for number in range(count):
        values = rng.standard_normal(shape, dtype=np.float32)
        write_model(folder / f"m{number}", {f"t{i}": v for i, v in enumerate(values)}, shards=shards)
    models = [str(folder / f"m{number}") for number in range(count)]
    return {"merge_method": "linear", "models": models, "parameters": {"weight": 1.0}}


def address_space(folder: Path, figures: Figures, rooms: list[int]) -> None:
    """Merges within an address space that is too small, and less and less so. Below `memory` of the report, and some
    stacks of threads, it may fail, but must say so."""
    with figures.timed():
        recipe = models_of(folder, 3, 24)
        options = {"threads": 2, "sync": False, "memory": "64MB"}
        assert not attempt(recipe, str(folder / "right"), options)
        for room in rooms:
            out = folder / f"out-{room}"
            try:
                said = children.run(attempt_within, recipe, str(out), options, room * MIB)
            except AssertionError as error:
                said, wrong = "", [f"with {room} MiB: {error}"]
            else:
                wrong = _outcome(out, folder / "right", said, figures)
            figures.add([f"address space, {room} MiB: {problem}" for problem in wrong])


def _outcome(out: Path, right: Path, said: str, figures: Figures) -> list[str]:
    figures.count("refused" if said else "finished")
    if said:
        return ["the output looks complete"] if out.exists() and looks_complete(out) else []
    return [] if read(out) == read(right) else [difference(read(out), read(right))]


def descriptors(folder: Path, figures: Figures, limit: int = 64, shards: int = 500) -> None:
    """More shards than descriptors."""
    with figures.timed():
        rng = np.random.default_rng(0)
        for name in ("m0", "m1", "m2"):
            tensors = {f"t{i}": rng.standard_normal(8).astype(np.float32) for i in range(shards)}
            write_model(folder / name, tensors, shards=shards)
        models = [str(folder / name) for name in ("m0", "m1", "m2")]
        recipe = {"merge_method": "linear", "models": models, "parameters": {"weight": 1.0}}
        options = {"threads": 2, "sync": True, "shard_size": "4kB"}
        assert not attempt(recipe, str(folder / "right"), options)
        said = children.run(attempt, recipe, str(folder / "out"), options, RLIMIT_NOFILE=limit)
        wrong = [said] if said else _outcome(folder / "out", folder / "right", said, figures)
        figures.add([f"{limit} descriptors: {problem}" for problem in wrong])


@contextlib.contextmanager
def small_disk(folder: Path, nbytes: int) -> Iterator[Path]:
    """A file system of this size. Only root can make one."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={nbytes}", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-i", "-t", "tmpfs", "-o", f"remount,{options}", "tmpfs", folder], check=True)


def full_disk(place: Workplace, figures: Figures, sizes: list[int]) -> None:
    """Merges onto disks with so much room, which then get larger, and are resumed."""
    with figures.timed():
        place.out = place.folder / "disk" / "out"
        taken = sum(-(-len(data) // PAGE) * PAGE for data in place.before.values() if data)
        for size in sizes:
            with small_disk(place.folder / "disk", taken + size):
                place.restore()
                wrong = _attempt_here(place, figures)
                remount(place.out.parent, f"size={16 * MIB}")
                wrong += place.check_both_ways_on()
                figures.add([f"disk of {size} bytes: {problem}" for problem in wrong])
            (place.folder / "disk").rmdir()
        place.out = place.folder / "out"


def read_only(place: Workplace, figures: Figures) -> None:
    """A file system that nobody may write to."""
    with figures.timed(), small_disk(place.folder / "disk", MIB):
        place.out = place.folder / "disk" / "out"
        remount(place.out.parent, "ro")
        wrong = _attempt_here(place, figures)
        wrong += [] if "refused" in figures.counts else ["a read-only disk was written to"]
        figures.add([f"read-only disk: {problem}" for problem in wrong])
    place.out = place.folder / "out"


def file_size(place: Workplace, figures: Figures, sizes: list[int]) -> None:
    """Merges in a process that may not make files of more than so many bytes."""
    with figures.timed():
        before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
        try:
            for size in sizes:
                place.restore()
                resource.setrlimit(resource.RLIMIT_FSIZE, (size, unlimited[1]))
                try:
                    wrong = _attempt_here(place, figures)
                finally:
                    resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
                wrong += place.check_both_ways_on()
                figures.add([f"files of {size} bytes: {problem}" for problem in wrong])
        finally:
            signal.signal(signal.SIGXFSZ, before)


def _attempt_here(place: Workplace, figures: Figures) -> list[str]:
    try:
        place.merge()
    except wm.MergeError:
        figures.count("refused")
        return place.check()
    except Exception as error:
        return [f"{type(error).__name__}: {error}"]
    figures.count("finished")
    return place.check_finished(disturbed=True)


def sizes_of(rng: random.Random, number: int, largest: int = 48 << 10) -> list[int]:
    """Sizes from nothing to more than the merges here need."""
    return sorted(rng.randrange(largest) // 512 * 512 for _ in range(number))


def can_mount() -> bool:
    return os.geteuid() == 0 and shutil.which("mount") is not None
