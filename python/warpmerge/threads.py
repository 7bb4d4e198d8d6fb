"""How many threads to use: the cores of this process, at most its container's CPU quota."""

from __future__ import annotations

import math
import numbers
import os
from pathlib import Path

from .errors import UsageError, shown

LARGEST = 1024


def thread_count(asked: int | None = None) -> int:
    """`asked`, or the number that the affinity mask and the cgroup quota allow. Raises UsageError for no number."""
    if asked is not None:
        if isinstance(asked, bool) or not isinstance(asked, numbers.Integral) or not 0 < asked <= LARGEST:
            raise UsageError(f"threads must be a number from 1 to {LARGEST}, got {shown(asked)}.")
        return int(asked)
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_quota()
    return max(1, min(available, math.ceil(quota)) if quota else available)


def _cgroup_quota() -> float | None:
    try:
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return None
    return None if limit == "max" else int(limit) / int(period)
