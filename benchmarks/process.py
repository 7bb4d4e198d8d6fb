"""Runs commands as a user would, each in a fresh process, and measures them from outside."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

POLL_SECONDS = 0.005


def warpmerge_command() -> list[str]:
    """The installed command, or `WARPMERGE_BENCH_COMMAND` (to compare two builds, say)."""
    if custom := os.environ.get("WARPMERGE_BENCH_COMMAND"):
        return shlex.split(custom)
    script = Path(sys.executable).parent / "warpmerge"
    return [str(script)] if script.exists() else [sys.executable, "-m", "warpmerge"]


def run(
    command: Sequence[str],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    poll: bool = False,
) -> tuple[float, float]:
    """Runs a command to its end. Returns its wall-clock seconds and, if polled, its peak anonymous megabytes.

    Anonymous memory is what the process costs the machine; pages of mapped inputs are cache that the kernel
    can take back, and they are all that VmHWM would show. The kernel keeps no high-water mark of the
    anonymous part, so it is polled, in a run of its own because that disturbs the timing a little. Memory is
    touched at 2.5 GB/s at the most, so that a peak between two polls is missed by about 12 MB at worst.
    """
    with tempfile.TemporaryFile() as output:
        start = time.perf_counter()
        child = subprocess.Popen(command, cwd=cwd, env=env, stdout=output, stderr=subprocess.STDOUT)
        peak = _poll(child) if poll else 0.0
        status = child.wait()
        seconds = time.perf_counter() - start
        if status != 0:
            output.seek(0)
            text = output.read()[-4000:].decode(errors="replace")
            raise RuntimeError(f"exit status {status} of {shlex.join(command)}:\n{text}")
    return seconds, peak


def _poll(child: subprocess.Popen[bytes]) -> float:
    peak = 0
    while child.poll() is None:
        peak = max(peak, _anonymous_kib(child.pid))
        time.sleep(POLL_SECONDS)
    return peak * 1024 / 1e6


def _anonymous_kib(pid: int) -> int:
    """Private and shared memory that no file backs, swapped out or not."""
    try:
        with open(f"/proc/{pid}/status") as file:
            lines = file.read().splitlines()
    except (FileNotFoundError, ProcessLookupError):  # it has just ended
        return 0
    anonymous = ("RssAnon:", "RssShmem:", "VmSwap:")
    return sum(int(line.split()[1]) for line in lines if line.startswith(anonymous))
