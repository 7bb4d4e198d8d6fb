"""What a result was measured on: the machine, the compiler and the commit."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

# What the speed depends on; an edited README does not make a result dirty.
SOURCES = ("csrc", "python", "triton_kernels", "benchmarks/*.py", "CMakeLists.txt", "setup.py")


def describe() -> dict[str, Any]:
    return {
        "cpu": _first(r"model name\s*:\s*(.+)", "/proc/cpuinfo") or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(int(_first(r"MemTotal:\s*(\d+)", "/proc/meminfo") or 0) * 1024 / 1e9, 1),
        "gpu": _line(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]),
        "load": round(os.getloadavg()[0], 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "compiler": _line([os.environ.get("CXX") or "c++", "--version"]),
        "commit": commit(),
    }


def commit() -> str:
    """The short hash of the commit, with `-dirty` where the sources differ from it."""
    head = _line(["git", "rev-parse", "--short=10", "HEAD"])
    if not head:
        return "uncommitted"
    return head + ("-dirty" if _line(["git", "status", "--porcelain", "--", *SOURCES]) else "")


def slug(machine: dict[str, Any]) -> str:
    """A file name for the machine: its processor and cores, and its GPU where it has one."""
    text = f"{machine['cpu']} {machine['cores']} cores {machine.get('gpu') or ''}"
    text = re.sub(r"\((R|TM)\)|\bCPU\b|\bProcessor\b|@.*?Hz", " ", text, flags=re.IGNORECASE)
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _first(pattern: str, path: str) -> str:
    try:
        found = re.search(pattern, Path(path).read_text())
    except OSError:
        return ""
    return found.group(1).strip() if found else ""


def _line(command: Sequence[str]) -> str:
    """The first line that a command prints, or nothing."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.splitlines()[0].strip() if done.returncode == 0 and done.stdout else ""
