"""Interrupts at random moments of every call that starts workers: one, or a second one while the first is dealt with.

A process here makes arrays whose memory is its own, starts an operation on them, and is interrupted by a timer or by
another process. When the exception has left the operation, nobody may touch the memory or the descriptors that were
lent: so the process fills every input and target with a pattern, opens files that get the descriptors' numbers, waits,
and looks whether all is as it left it. Then it unmaps the memory, so that whoever comes later crashes the process.
"""

from __future__ import annotations

import contextlib
import functools
import mmap
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
import warpmerge as wm
from helpers import write_model

from torture import children
from torture.figures import Figures

# Of the single and of the double interrupts, how many come from where. Two signals of another process seldom both
# arrive before the operation has ended.
SHARES = [("timer", 0.5, 0.95), ("process", 0.5, 0.05)]
PATTERN, QUIET = 0xA5, 0.001  # what is filled in; seconds in which nobody may write
SHAPES = {"a": (700, 300), "b": (96, 1024), "c": (1024,), "d": (5, 7)}
MANY = 8  # files that take the numbers of descriptors that were closed

SENDER = """
import os, signal, sys, time
for line in sys.stdin:
    for delay in map(float, line.split()):
        end = time.perf_counter() + delay
        time.sleep(max(0, delay - 0.001))
        while time.perf_counter() < end:  # sleep is too coarse for a second interrupt
            pass
        os.kill({pid}, signal.SIGINT)
"""


class Interrupter:
    """Interrupts a function after a delay, and again after a second one. `hits` counts what arrived within it.

    A signal that arrives while the function is not on the stack is ignored, so none can end this program itself.
    """

    def __init__(self, source: str) -> None:
        self.hits = 0
        self._second: float | None = None
        self._sender = None
        signal.signal(signal.SIGALRM, self._arrived)
        signal.signal(signal.SIGINT, self._arrived)
        if source == "process":
            code = SENDER.format(pid=os.getpid())
            self._sender = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, text=True)

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        while frame is not None and frame.f_code is not self._within.__code__:
            frame = frame.f_back
        if frame is None:
            return
        self.hits += 1
        if self._second is not None:
            second, self._second = self._second, None
            signal.setitimer(signal.ITIMER_REAL, second)
        raise KeyboardInterrupt

    def run(self, function: Callable[[], Any], delays: list[float]) -> None:
        """Calls the function, which may be interrupted or not."""
        self.hits = 0
        if self._sender is not None:
            assert self._sender.stdin
            self._sender.stdin.write(" ".join(map(str, delays)) + "\n")
            self._sender.stdin.flush()
        else:
            self._second = delays[1] if len(delays) > 1 else None
            signal.setitimer(signal.ITIMER_REAL, delays[0])
        with contextlib.suppress(KeyboardInterrupt):
            self._within(function)

    @staticmethod
    def _within(function: Callable[[], Any]) -> None:
        function()

    def close(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        if self._sender is not None:
            assert self._sender.stdin
            self._sender.stdin.close()
            self._sender.wait()


class Lent:
    """Tensors in memory of their own, which is lent to an operation and taken back."""

    def __init__(self, rng: np.random.Generator, count: int) -> None:
        self._maps: list[mmap.mmap] = []
        self.models = [self._model(rng) for _ in range(count)]

    def _model(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {name: self._array(rng.standard_normal(shape, dtype=np.float32)) for name, shape in SHAPES.items()}

    def _array(self, values: np.ndarray) -> np.ndarray:
        self._maps.append(mmap.mmap(-1, values.nbytes))
        array = np.frombuffer(self._maps[-1], np.float32).reshape(values.shape)
        array[...] = values
        return array

    def take_back(self) -> None:
        """Nobody else may use the memory from now on."""
        for memory in self._maps:
            memory[:] = bytes([PATTERN]) * len(memory)

    def is_untouched(self) -> bool:
        return all(memory[:] == bytes([PATTERN]) * len(memory) for memory in self._maps)


# Each operation uses the lent models and a folder with models `m0` to `m2` and the recipe's merge `right`.
Operation = Callable[[Lent, Path, random.Random], Any]
PARAMETERS = {"weight": 0.5, "density": 0.5}


def _merge_tensors(lent: Lent, folder: Path, rng: random.Random) -> Any:
    return wm.merge_tensors([m["a"] for m in lent.models[1:]], "ties", base=lent.models[0]["a"], **PARAMETERS)


def _merge_state_dicts(lent: Lent, folder: Path, rng: random.Random) -> Any:
    method = rng.choice(["ties", "linear", "dare_linear"])
    parameters = {} if method == "linear" else {"density": 0.5}
    return wm.merge_state_dicts(lent.models[1:], method, base=lent.models[0], weight=0.4, **parameters)


def _pool_into(lent: Lent, folder: Path, rng: random.Random) -> Any:
    into = {name: torch.from_numpy(array) for name, array in lent.models[3].items()}
    models = [{name: torch.from_numpy(array) for name, array in model.items()} for model in lent.models[:3]]
    with wm.Pool(models[0], models[1:]) as pool:
        pool.merge("ties", into=into, **PARAMETERS)


def _pool_of_files(lent: Lent, folder: Path, rng: random.Random) -> Any:
    into = {name: torch.from_numpy(array) for name, array in lent.models[3].items()}
    with wm.Pool(folder / "m0", [folder / "m1", folder / "m2"]) as pool:
        pool.merge("ties", into=into, **PARAMETERS)


def _merge_files(lent: Lent, folder: Path, rng: random.Random) -> Any:
    wm.merge(_recipe(folder), folder / "out", backend="cpu", threads=2, sync=False, shard_size="500kB", overwrite=True)


def _verify(lent: Lent, folder: Path, rng: random.Random) -> Any:
    return wm.verify(folder / "right", threads=2)


OPERATIONS: list[Operation] = [_merge_tensors, _merge_state_dicts, _pool_into, _pool_of_files, _merge_files, _verify]


def _recipe(folder: Path) -> dict[str, Any]:
    models = [str(folder / name) for name in ("m1", "m2")]
    return {"merge_method": "ties", "base_model": str(folder / "m0"), "models": models, "parameters": PARAMETERS}


def interrupt(folder: str, seed: int, number: int) -> dict[str, Any]:
    """Interrupts operations until `number` were hit once and as many twice. Returns how many runs that took, how many
    hits there were of each kind, and what is wrong."""
    where, rng, values = Path(folder), random.Random(seed), np.random.default_rng(seed)
    prepare(where)
    longest = {operation: _seconds(operation, where, values) for operation in OPERATIONS}
    found: dict[str, Any] = {"runs": 0, "single": 0, "double": 0, "wrong": []}
    for source, singles, doubles in SHARES:
        interrupter = Interrupter(source)
        goals = found["single"] + singles * number, found["double"] + doubles * number
        while found["single"] < goals[0] or found["double"] < goals[1]:
            double = found["double"] < goals[1]
            operation = rng.choice(OPERATIONS)
            lent = Lent(values, 4)
            delays = [rng.uniform(1e-6, longest[operation])] + double * [10 ** rng.uniform(-5, -3)]
            title = f"{operation.__name__.strip('_')}, run {found['runs']} of seed {seed}"
            try:
                interrupter.run(functools.partial(operation, lent, where, rng), delays)
            except Exception as error:  # what an interrupted call has left behind is in the way of the next
                found["wrong"].append(f"{title}: {type(error).__name__}: {error}")
                shutil.rmtree(where / "out", ignore_errors=True)
            hits = interrupter.hits
            lent.take_back()
            found["runs"] += 1
            found["single"] += hits == 1
            found["double"] += hits > 1
            if not (_descriptors_are_free(where) and lent.is_untouched()):
                found["wrong"].append(f"{title}: something was written after it had ended")
        interrupter.close()
    return found


def _seconds(operation: Operation, folder: Path, values: np.random.Generator) -> float:
    for _ in range(2):  # the first time something is imported
        lent, started = Lent(values, 4), time.perf_counter()
        operation(lent, folder, random.Random(0))
    return time.perf_counter() - started


def _descriptors_are_free(folder: Path) -> bool:
    """Opens files that get the lowest free descriptors, and looks whether somebody else writes to them meanwhile."""
    content = bytes([PATTERN]) * 4096
    files = []
    for number in range(MANY):
        file = open(folder / f"descriptor-{number}", "w+b", buffering=0)  # noqa: SIM115
        file.write(content)
        files.append(file)
    time.sleep(QUIET)
    untouched = True
    for file in files:
        file.seek(0)
        untouched = untouched and file.read() == content
        file.close()
    return untouched


def prepare(folder: Path) -> None:
    """The models that the operations on files use, and a finished merge."""
    rng = np.random.default_rng(1)
    for name in ("m0", "m1", "m2"):
        tensors = {n: rng.standard_normal(shape, dtype=np.float32) for n, shape in SHAPES.items()}
        write_model(folder / name, tensors, shards=2)
    wm.merge(_recipe(folder), folder / "right", backend="cpu", threads=2, sync=False)


def campaign(folder: Path, figures: Figures, seed: int, number: int) -> None:
    """So many single and as many double interrupts."""
    folder.mkdir(parents=True, exist_ok=True)
    with figures.timed():
        try:
            found = children.run(interrupt, str(folder), seed, number, timeout=3600)
        except AssertionError as error:
            figures.add([str(error)])
            return
        figures.runs += found["runs"] - 1
        figures.count("single", found["single"])
        figures.count("double", found["double"])
        figures.add(found["wrong"])
