"""Runs a function of a module here in a process of its own, under limits of its own."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from typing import Any

CHILD = "import sys; sys.path[:0] = {paths!r}; from torture.children import serve; serve()"


def run(function: Callable[..., Any], *arguments: Any, timeout: float = 300, **limits: int) -> Any:
    """What the function returns, called in a new process. `limits`: names of the module `resource`, each set after
    the imports. AssertionError if the process ends otherwise."""
    task = {
        "module": function.__module__,
        "function": function.__name__,
        "arguments": arguments,
        "limits": limits,
    }
    done = subprocess.run(
        [sys.executable, "-c", CHILD.format(paths=sys.path)],
        input=json.dumps(task),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, f"the process ended with {done.returncode}: {done.stderr[-2000:]}"
    return json.loads(done.stdout.splitlines()[-1])


def serve() -> None:
    """The other end of `run`."""
    task = json.loads(sys.stdin.read())
    function = getattr(importlib.import_module(task["module"]), task["function"])
    for name, value in task["limits"].items():
        resource.setrlimit(getattr(resource, name), (value, value))
    with contextlib.redirect_stdout(sys.stderr):
        answer = function(*task["arguments"])
    print(json.dumps(answer), flush=True)


def memory_in_use(key: str = "VmSize") -> int:
    """A figure of this process's memory, in bytes."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith(f"{key}:"))


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))
