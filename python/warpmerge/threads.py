"""How many threads to use: the cores of this process, at most its container's CPU quota."""

from __future__ import annotations

import math
import os
from pathlib import Path


def thread_count(asked: int | None = None) -> int:
    """`asked`, or the number that the affinity mask and the cgroup quota allow."""
    if asked:
        return asked
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_quota()
    return max(1, min(available, math.ceil(quota)) if quota else available)


def _cgroup_quota() -> float | None:
    try:
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return None
    return None if limit == "max" else int(limit) / int(period)
