"""Sizes and durations as text: parsed from options, shown in messages."""

from __future__ import annotations

import re

from .errors import UsageError, shown

_UNITS = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 2**10,
    "mi": 2**20,
    "gi": 2**30,
    "ti": 2**40,
}


def parse_size(value: int | str, name: str) -> int:
    """Number of bytes of a size: an int, or text. Raises UsageError, whose message begins with `name`.

    `5GB` is 5 * 10^9, `4GiB` is 4 * 2^30; as in mergekit, `5B` is 5 * 10^9.
    """
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**63:
        return value
    found = re.fullmatch(
        r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?(b)?\s*", (value if isinstance(value, str) else shown(value)).lower()
    )
    count = float(found[1]) * _UNITS[found[2] or ("g" if found[3] else "")] if found else 0.0
    if not 1 <= count < 2**63:
        raise UsageError(f"{name}: {shown(value)} is not a size; write for example 5GB or 4GiB.")
    return int(count)


def parse_share(value: float | str, name: str) -> float:
    """A share: a number from 0 to 1, or text such as `5%`. Raises UsageError, whose message begins with `name`."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", value) if isinstance(value, str) else None
    share = float(found[1]) / 100 if found else value
    if isinstance(share, (int, float)) and not isinstance(share, bool) and 0 <= share <= 1:
        return float(share)
    raise UsageError(f"{name}: {shown(value)} is not a share; write for example 5%.")


def show_size(count: float) -> str:
    """A number of bytes with three significant digits: `1.23 GB`."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(count) < 999.5 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:#.3g} {unit}".replace(". ", " ")
        count /= 1000
    raise AssertionError


def show_seconds(seconds: float) -> str:
    """A duration: `1.23 s`, or `2.1 min` from 100 seconds on."""
    return f"{seconds:.2f} s" if seconds < 100 else f"{seconds / 60:.1f} min"
