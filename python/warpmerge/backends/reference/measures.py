"""Rules, order statistics and sums of the reference, in plain PyTorch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from ...requests import GramResult, HistogramResult, RandomMask, RankMask, Reduce, Selection

LANES, ROWS = 256, 16
BLOCK = LANES * ROWS
COLUMN_BLOCKS, COLUMN_SUMS = 64, 1 << 19
HISTOGRAM_BITS = 16
_MASK32 = 0xFFFFFFFF

# --- rules and order statistics -------------------------------------------------------------------------------------


def canonical(d: torch.Tensor) -> torch.Tensor:
    return torch.where(torch.isnan(d), torch.full_like(d, float("nan")), d)


def finite(d: torch.Tensor) -> torch.Tensor:
    return torch.where(torch.isfinite(d), d, torch.zeros_like(d))


def magnitude_keys(d: torch.Tensor) -> torch.Tensor:
    """(n,) int64: the bit pattern of |d|, with every NaN the canonical one."""
    return canonical(d).abs().view(torch.int64 if d.dtype == torch.float64 else torch.int32).to(torch.int64)


def keep_mask(d: torch.Tensor, keep: Any) -> torch.Tensor:
    if isinstance(keep, RandomMask):
        return philox_lanes(keep.key, d.numel()) < keep.cut
    if isinstance(keep, RankMask):
        return philox_lanes(keep.key, d.numel()) < ramp_cuts(row_ranks(d, keep.columns), keep)
    if keep.threshold > 2**63 - 1:
        return torch.zeros(d.shape, dtype=torch.bool)
    keys = magnitude_keys(d)
    index = torch.arange(d.numel())
    return (keys > keep.threshold) | ((keys == keep.threshold) & (index < keep.tie_end))


def ramp_cuts(ranks: torch.Tensor, keep: RankMask) -> torch.Tensor:
    low, step = torch.tensor([keep.low, keep.step], dtype=torch.float64).to(ranks.dtype)
    return torch.round(low + ranks * step).clamp(1, 65535)


def row_ranks(d: torch.Tensor, columns: int) -> torch.Tensor:
    """Of each element's magnitude among those of its row, equal ones by column."""
    order = torch.argsort(magnitude_keys(d).view(-1, columns), dim=1, stable=True)
    ranks = torch.empty_like(order)
    ranks.scatter_(1, order, torch.arange(columns).expand_as(order))
    return ranks.flatten().to(d.dtype)


def philox_lanes(key: int, count: int) -> torch.Tensor:
    """(count,) int64: 16 bits per element, eight per call of Philox4x32-10 with counter (element // 8, 0, 0)."""
    call = torch.arange(-(-count // 8), dtype=torch.int64)
    c0, c1 = call & _MASK32, call >> 32
    c2 = c3 = torch.zeros_like(call)
    k0, k1 = key & _MASK32, key >> 32
    for _ in range(10):
        a, b = c0 * 0xD2511F53, c2 * 0xCD9E8D57  # wraps at 64 bits, which leaves the bits right
        c0 = ((b >> 32) & _MASK32) ^ c1 ^ k0
        c2 = ((a >> 32) & _MASK32) ^ c3 ^ k1
        c1, c3 = b & _MASK32, a & _MASK32
        k0, k1 = (k0 + 0x9E3779B9) & _MASK32, (k1 + 0xBB67AE85) & _MASK32
    halves = [h for word in (c0, c1, c2, c3) for h in (word & 0xFFFF, word >> 16)]
    return torch.stack(halves, dim=1).flatten()[:count]


def select(d: torch.Tensor, count: int, keep_all_ties: bool) -> Selection:
    """The count-th largest magnitude of (n,) d, and the ties at it that complete the count, lowest index first."""
    keys = magnitude_keys(d)
    threshold = int(torch.kthvalue(keys, d.numel() - count + 1).values)
    above = int((keys > threshold).sum())
    ties = torch.nonzero(keys == threshold).flatten()
    missing = count - above
    exact = not keep_all_ties and threshold != 0 and missing < len(ties)
    return (
        Selection(threshold, int(ties[missing - 1]) + 1, above, len(ties))
        if exact
        else Selection(threshold, above=above, ties=len(ties))
    )


# --- sums -----------------------------------------------------------------------------------------------------------


def fixed_sum(terms: torch.Tensor) -> float:
    """Sum of (n,) terms in the one documented order (csrc/ops/reduce.h)."""
    blocks = -(-terms.numel() // BLOCK)
    if blocks == 0:
        return 0.0
    padded = torch.zeros(blocks * BLOCK, dtype=terms.dtype)
    padded[: terms.numel()] = terms
    matrix = padded.view(blocks, ROWS, LANES)
    lanes = torch.zeros(blocks, LANES, dtype=terms.dtype)
    for row in range(ROWS):
        lanes = lanes + matrix[:, row]
    while lanes.shape[1] > 1:
        lanes = lanes[:, 0::2] + lanes[:, 1::2]
    partial = lanes[:, 0].double()
    while len(partial) > 1:
        odd = partial[len(partial) // 2 * 2 :]
        partial = torch.cat([partial[0 : len(partial) - len(odd) : 2] + partial[1::2], odd])
    return float(partial[0])


def reduced(values: list[torch.Tensor], request: Reduce, columns: int) -> Any:
    """The result of `request` for (n,) finite values; rows have `columns` elements."""
    count = values[0].numel()
    if request.kind == "histogram":
        return [histogram(v, *interval) for v, interval in zip(values, request.intervals, strict=True)]
    in_compute_type = request.kind == "sum" and request.accumulator == "compute"
    terms = values if in_compute_type else [v.double() for v in values]
    if request.pairs:
        terms = [terms[i] * terms[k] for i, k in request.pairs]
    if request.kind == "count":
        terms = [(v != 0).double() for v in values]
    if request.over == "tensor":
        return tuple(_of_tensor(term, request, count) for term in terms)
    if count == 0:
        return np.zeros((len(terms), columns if request.over == "column" else 0))
    matrices = [term.view(-1, columns) for term in terms]
    if request.kind in ("max", "min"):
        dim = 1 if request.over == "row" else 0
        found = [(m.amax(dim) if request.kind == "max" else m.amin(dim)) + 0.0 for m in matrices]
    else:
        found = [row_sums(m) if request.over == "row" else column_sums(m) for m in matrices]
    return canonical(torch.stack(found)).numpy()


def _of_tensor(term: torch.Tensor, request: Reduce, count: int) -> float | int:
    if request.kind == "count":
        return int(term.sum())
    if request.kind in ("max", "min"):
        return float(term.max() if request.kind == "max" else term.min()) + 0.0 if count else 0.0
    total = fixed_sum(term) / (max(1, count) if request.per_element else 1)
    return total if total == total else math.nan


def gram(x: list[torch.Tensor]) -> GramResult:
    """Of the finite elements."""
    x = [finite(v) for v in x]
    flat = [fixed_sum(v.double() ** 2) for v in x]
    flat += [fixed_sum((x[i].double() - x[k].double()) ** 2) for i in range(len(x)) for k in range(i + 1, len(x))]
    return GramResult.unpack(flat, len(x))


def histogram(d: torch.Tensor, low: int, high: int) -> HistogramResult:
    keys = magnitude_keys(d)
    shift = max(0, (high - low).bit_length() - HISTOGRAM_BITS)
    inside = keys[(keys >= low) & (keys <= high)]
    place = (inside - low) >> shift
    bins = torch.bincount(place, minlength=1 << HISTOGRAM_BITS)
    least = torch.full_like(bins, 2**63 - 1).scatter_reduce_(0, place, inside, "amin")
    most = torch.full_like(bins, -1).scatter_reduce_(0, place, inside, "amax")
    only = torch.where(least == most, least, -1).numpy() if shift else None
    return HistogramResult(int((keys > high).sum()), shift, bins.numpy(), only)


def row_sums(terms: torch.Tensor) -> torch.Tensor:
    return torch.tensor([fixed_sum(row) for row in terms], dtype=torch.float64)


def column_sums(terms: torch.Tensor) -> torch.Tensor:
    """(columns,) sums of (rows, columns) float64 in the order of csrc/ops/reduce.h."""
    rows, columns = terms.shape
    most = min(max(COLUMN_SUMS // columns, 1), COLUMN_BLOCKS)
    partials = []
    for block in terms.split(-(-rows // most)):
        total = torch.zeros(columns, dtype=torch.float64)
        for row in block:
            total = total + row
        partials.append(total)
    while len(partials) > 1:
        odd = partials[len(partials) & ~1 :]
        partials = [a + b for a, b in zip(partials[0::2], partials[1::2], strict=False)] + odd
    return partials[0]
