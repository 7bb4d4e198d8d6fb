"""Many merges in one process, one after the other, at once, after a fork, and under a hail of signals."""

from __future__ import annotations

import gc
import multiprocessing
import os
import random
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import warpmerge as wm

from torture.children import memory_in_use, open_descriptors, run
from torture.crash_states import read
from torture.faults import calls_of, faults_of
from torture.figures import Figures
from torture.merges import SCENARIOS, Workplace, difference
from torture.simulator import Killed, Simulator

GROWTH = 24 << 20  # bytes that the process may grow between the first quarter and the end


def leaks(folder: str, seed: int, number: int) -> list[str]:
    """So many merges of files and of memory, a third of which fail. Returns what has leaked."""
    rng = random.Random(seed)
    place = Workplace(Path(folder), SCENARIOS[0])
    faults = [fault for call in calls_of(place) for fault in faults_of(call)]
    arrays = [np.full((300, 300), float(i), np.float32) for i in range(3)]
    state: list[tuple[int, int, int]] = []
    for each in range(number):
        if each in (number // 4, number - 1):
            gc.collect()
            state.append((open_descriptors(), threading.active_count(), memory_in_use("VmRSS")))
        place.restore()
        simulator = Simulator(place.folder, rng.choice(faults).decision() if rng.random() < 0.33 else lambda call: 0)
        try:
            with simulator.running():
                place.merge()
        except (wm.MergeError, OSError, Killed):
            pass
        wm.merge_tensors(arrays, "karcher")
    names = ("descriptors", "threads", "bytes of memory")
    allowed = (0, 0, GROWTH)
    pairs = zip(names, *state, allowed, strict=True)
    return [f"{after - before:,} {name} were leaked" for name, before, after, most in pairs if after - before > most]


def no_leaks(folder: Path, figures: Figures, seed: int, number: int) -> None:
    with figures.timed():
        folder.mkdir(parents=True, exist_ok=True)
        wrong = run(leaks, str(folder), seed, number, timeout=1800)
        figures.count("merges in one process", number)
        figures.add(wrong)


def _merge_into(place: Workplace, out: Path) -> list[str]:
    """Merges files and memory. Returns what is wrong."""
    wm.merge(place.inputs / "recipe.yml", out, **place.options())
    arrays = [np.full((300, 300), float(i), np.float32) for i in range(3)]
    wrong = [] if (wm.merge_tensors(arrays, "linear", weight=1.0) == 1.0).all() else ["the mean in memory is wrong"]
    return wrong + ([] if read(out) == place.right else [difference(read(out), place.right)])


def _child(place: Workplace, out: Path, answers: multiprocessing.SimpleQueue) -> None:
    answers.put(_merge_into(place, out))


def after_fork(place: Workplace, figures: Figures, number: int) -> None:
    """Merges in children, forked by hand and by multiprocessing, and spawned, of a process that has merged before and
    merges between."""
    with figures.timed():
        for each in range(number):
            wrong = _merge_into(place, place.folder / f"parent-{each}")
            child = os.fork()
            if not child:
                code = 1
                try:
                    code = bool(_merge_into(place, place.folder / f"fork-{each}"))
                finally:
                    os._exit(code)
            status = os.waitpid(child, 0)[1]
            wrong += [f"the child of a fork ended with {status}"] * bool(status)
            for method in ("fork", "spawn") if each == 0 else ("fork",):
                context = multiprocessing.get_context(method)
                answers = context.SimpleQueue()
                process = context.Process(target=_child, args=(place, place.folder / f"{method}-mp-{each}", answers))
                process.start()
                process.join(120)
                wrong += [f"{method}: ended with {process.exitcode}"] if process.exitcode else answers.get()
            figures.add([f"fork: {problem}" for problem in wrong])


def at_once(place: Workplace, figures: Figures, threads: int, number: int) -> None:
    """Merges in several threads of one process."""
    with figures.timed(), ThreadPoolExecutor(threads) as pool:
        outs = [place.folder / f"thread-{each}" for each in range(number)]
        for wrong in pool.map(lambda out: _merge_into(place, out), outs):
            figures.add([f"threads: {problem}" for problem in wrong])


def under_signals(place: Workplace, figures: Figures, number: int) -> None:
    """Merges while every thread of the process gets signals with a handler, which break off its system calls."""
    with figures.timed():
        received, stop = [], threading.Event()
        before = signal.signal(signal.SIGUSR1, lambda *_: received.append(1))
        hail = threading.Thread(target=_hail, args=(stop,))
        hail.start()
        try:
            for each in range(number):
                wrong = _merge_into(place, place.folder / f"signals-{each}")
                figures.add([f"signals: {problem}" for problem in wrong])
        finally:
            stop.set()
            hail.join()
            signal.signal(signal.SIGUSR1, before)
        figures.count("signals", len(received))


def _hail(stop: threading.Event) -> None:
    """Sends a signal to one thread after the other, the native ones included."""
    tgkill = 234  # of x86-64; Python has no name for it
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    while not stop.wait(0.0002):
        for thread in os.listdir("/proc/self/task"):
            libc.syscall(tgkill, os.getpid(), int(thread), signal.SIGUSR1)
