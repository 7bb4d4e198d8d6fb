"""The figures of a row, as every benchmark writes them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def spread(values: Sequence[float]) -> dict[str, float]:
    """The median and the extremes."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratio(values: Sequence[float], others: Sequence[float]) -> dict[str, float]:
    """The spread of `values` over the `others` that were measured in turn with them."""
    return spread([a / b for a, b in zip(values, others, strict=False)])


def rates(nbytes: int, seconds: Sequence[float], roof: float | None = None) -> dict[str, float]:
    """GB/s at the median of the seconds, and beside it the roof's, in GB/s too."""
    rate = nbytes / statistics.median(seconds) / 1e9
    return {"GB/s": rate} | ({} if roof is None else {"roof GB/s": roof, "% of roof": 100 * rate / roof})
