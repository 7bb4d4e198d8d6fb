"""Real processes that are really killed: at random moments, and at every system call that a merge makes.

The merges of one folder run in a process that has imported everything and forks for each of them, so a run takes
milliseconds. For kills at system calls, strace counts the calls of that child and kills it at the chosen one.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from torture.figures import Figures
from torture.merges import Workplace

LATE = 5.0  # seconds: a merge here takes milliseconds

# Prints a line when all is imported, then merges once for each line that it reads, each time in a child of its own.
# A line "trace" has the child wait for a signal first, so that somebody can attach to it.
SERVER = """
import os, signal, sys, time
sys.path[:0] = {paths!r}
import warpmerge as wm
from warpmerge import backends
import numpy, yaml
options = {options!r}
wm.verify  # imported when first used, as are others
wm.merge({recipe!r}, {out!r} + "-warm", **options)
begin = []
signal.signal(signal.SIGUSR1, lambda *_: begin.append(1))
print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if not child:
        while line == "trace\\n" and not begin:
            time.sleep(0.0005)
        try:
            wm.merge({recipe!r}, {out!r}, **options)
        except wm.MergeError as error:
            print(error, file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    print(child, flush=True)
    sys.stdin.readline()  # until then it stays a zombie, so that its number is nobody else's
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""

WAITING = {"clock_nanosleep", "restart_syscall", "rt_sigreturn"}  # the child's, before it merges


class Server:
    """The process that forks. `start` returns the child's process id, `status` waits for its end."""

    def __init__(self, place: Workplace) -> None:
        options = place.options()
        recipe = str(place.inputs / "recipe.yml")
        code = SERVER.format(paths=sys.path, options=options, recipe=recipe, out=str(place.out))
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._read()

    def _read(self) -> str:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(self._process.communicate()[1])
        return line.strip()

    def start(self, how: str = "go") -> int:
        self._write(how)
        return int(self._read())

    def status(self) -> int:
        self._write("wait")
        return int(self._read())

    def _write(self, line: str) -> None:
        assert self._process.stdin
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._process.stderr.close()


def kill_at_random(place: Workplace, figures: Figures, rng: random.Random, number: int) -> None:
    """SIGKILL after a random time of up to one and a half times what a merge takes."""
    with figures.timed():
        server = Server(place)
        try:
            place.restore()
            started = time.perf_counter()
            server.start()
            assert server.status() == 0
            longest = 1.5 * (time.perf_counter() - started)
            for _ in range(number):
                place.restore()
                child = server.start()
                delay = rng.uniform(0, longest)
                time.sleep(delay)
                os.kill(child, signal.SIGKILL)
                figures.count("killed" if server.status() == -signal.SIGKILL else "finished first")
                wrong = place.check() + place.check_both_ways_on()
                lines = [f"{place.scenario}, killed after {delay:.6f} s: {problem}" for problem in wrong]
                figures.add(lines)
        finally:
            server.close()


def system_calls(server: Server, log: Path) -> dict[str, int]:
    """How often a merge makes each system call, all of them, of all its threads."""
    assert _traced(server, "-o", str(log)) == 0
    found: dict[str, int] = {}
    for name in re.findall(r"^\d+ +(\w+)\(", log.read_text(), re.MULTILINE):
        found[name] = found.get(name, 0) + 1
    return {name: times for name, times in found.items() if name not in WAITING}


def kill_at_system_calls(place: Workplace, figures: Figures, rng: random.Random, most: int | None = None) -> None:
    """SIGKILL at the n-th call of each system call, for each n, whether the call is the engine's or a library's."""
    if not shutil.which("strace"):
        figures.losses.append("strace is not installed: no kill at a system call was tried")
        return
    with figures.timed():
        server = Server(place)
        try:
            place.restore()
            counts = system_calls(server, place.folder / "strace.log")
            all_of_them = [(name, n) for name, times in counts.items() for n in range(1, times + 1)]
            for name, n in all_of_them if most is None else rng.sample(all_of_them, min(most, len(all_of_them))):
                place.restore()
                status = _traced(server, "-o", "/dev/null", "-e", f"inject={name}:signal=KILL:when={n}")
                figures.count("killed" if status == -signal.SIGKILL else "finished first")
                wrong = place.check() + place.check_both_ways_on()
                lines = [f"{place.scenario}, killed at {name} {n}: {problem}" for problem in wrong]
                figures.add(lines)
        finally:
            server.close()


def _traced(server: Server, *options: str) -> int:
    """Runs a merge under strace, which counts each thread's calls for itself. Returns its status."""
    child = server.start("trace")
    tracer = subprocess.Popen(["strace", "-f", "-qq", "-p", str(child), *options], stderr=subprocess.DEVNULL)
    while "TracerPid:\t0\n" in Path(f"/proc/{child}/status").read_text():
        assert tracer.poll() is None, "strace cannot attach to the process"
        time.sleep(0.0005)
    os.kill(child, signal.SIGUSR1)
    # A signal in the moment in which strace attaches can get lost. The child's number is nobody else's yet.
    again = threading.Timer(LATE, os.kill, (child, signal.SIGUSR1))
    again.start()
    try:
        status = server.status()
    finally:
        again.cancel()
    tracer.wait()
    return status
