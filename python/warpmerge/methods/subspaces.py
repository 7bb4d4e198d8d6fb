"""Merges of singular vectors, in torch: functions of the K deltas of one matrix, (rows, columns) each.

Each function returns the merged delta, in the deltas' dtype. Deltas are transposed if they have more columns than rows,
so that linalg.py works on tall matrices only. Its Gram matrices are then of the short side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from .linalg import Part, Rows, Times, added, blocks, gram, product, recombined, rows_of, singular
from .task_vectors import kept_count

CANCELLED = {torch.float32: 2.0**-20, torch.float64: 2.0**-40}  # a sum up to this share of its magnitudes is rounding


def _tall(tensors: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], torch.Tensor, bool]:
    """The matrices, transposed if wide; an empty matrix like them for the result; whether they are transposed."""
    transposed = tensors[0].shape[0] < tensors[0].shape[1]
    tall = [t.T if transposed else t for t in tensors]
    return tall, torch.empty_like(tall[0]), transposed


def _sum(tensors: Sequence[torch.Tensor], weights: Sequence[float]) -> Rows:
    return lambda part: added(w * t[part].double() for w, t in zip(weights, tensors, strict=True))


def _times(t: torch.Tensor, right: torch.Tensor) -> Rows:
    return lambda part: t[part].double() @ right


def task_singular_vectors(deltas: Sequence[torch.Tensor], weights: Sequence[float], cutoff: float) -> torch.Tensor:
    """U diag(w_1 S_1, ..., w_K S_K) V^T. U and V are polar factors of the deltas' first singular vectors."""
    tall, out, transposed = _tall(deltas)
    count, short = out.shape
    parts = []
    for t in tall:
        squares = gram(rows_of(t), count, short, t)
        parts.append(Part(rows_of(t), *singular(squares, cutoff, short // len(tall))))
    diagonal = torch.cat([w * part.values for w, part in zip(weights, parts, strict=True)])
    recombined(parts, diagonal, out)
    return out.T if transposed else out


def isotropic(deltas: Sequence[torch.Tensor], weights: Sequence[float], cutoff: float) -> torch.Tensor:
    """The weighted sum of the deltas, with the mean singular value in place of each singular value."""
    tall, out, transposed = _tall(deltas)
    count, short = out.shape
    rows = _sum(tall, weights)
    values, vectors = singular(gram(rows, count, short, out), cutoff)
    product(rows, (vectors * (values.sum() / short / values)) @ vectors.T, out)
    return out.T if transposed else out


def shared_directions(short: int, models: int, common: float) -> int:
    """The number of common directions among `short` ones. Each model gets the same number of the others."""
    own = round((short - int(short * common)) / models) * models
    return short - (own if own <= short else own - models)


def isotropic_in_parts(
    deltas: Sequence[torch.Tensor], weights: Sequence[float], common: float, cutoff: float
) -> torch.Tensor:
    """Common directions and directions of single models, made orthogonal, each with the mean singular value."""
    tall, out, transposed = _tall(deltas)
    count, short = out.shape
    shared = shared_directions(short, len(tall), common)
    rows = _sum(tall, weights)
    values, vectors = singular(gram(rows, count, short, out), cutoff)
    largest = float(values[0]) if len(values) else 0.0
    both = Part(rows, values[:shared], vectors[:, :shared])

    def remainder(t: torch.Tensor, weight: float) -> tuple[Rows, Times]:
        """w d - U_c U_c^T w d, and its products. U_c are left vectors of the deltas, right vectors of transposed ones.

        The matrix on the right has few columns. It is multiplied first, so that the long side meets few columns.
        """
        if transposed:
            rest = both.right @ (both.right.T * -weight)
            rest.diagonal().add_(weight)
            return lambda part: t[part].double() @ rest, lambda b: _times(t, rest @ b)
        cross = sum(rows(part).T @ t[part].double() for part in blocks(count, short))
        inside = both.weights @ (both.weights.T @ cross)

        def times(b: torch.Tensor) -> Rows:
            common = inside @ b
            return lambda part: weight * (t[part].double() @ b - rows(part) @ common)

        return lambda part: weight * (t[part].double() - rows(part) @ inside), times

    parts = []
    for t, weight in zip(tall, weights, strict=True):
        alone, times = remainder(t, weight)
        squares = gram(alone, count, short, out)
        parts.append(Part(alone, *singular(squares, cutoff, (short - shared) // len(tall), largest), times))
    parts.append(both)
    everything = torch.cat([part.values for part in parts])
    recombined(parts, torch.full_like(everything, float(everything.sum()) / short), out)
    return out.T if transposed else out


def aligned(
    deltas: Sequence[torch.Tensor], cutoff: float, merge: Callable[[list[torch.Tensor]], torch.Tensor]
) -> torch.Tensor:
    """U m. `merge` makes m from the models' parts, the transposed S V_k^T, (n, rank) each."""
    m, n = deltas[0].shape
    if m <= len(deltas) * n:
        squares = added(gram(rows_of(d.T), n, m, d) for d in deltas)
        values, left = singular(squares, cutoff)
        parts = [product(rows_of(d.T), left, d.new_empty(n, len(values))) for d in deltas]
        return product(rows_of(merge(parts)), left.T, deltas[0].new_empty(n, m)).T

    def rows(part: slice) -> torch.Tensor:
        return torch.cat([d[part].double() for d in deltas], 1)

    values, vectors = singular(gram(rows, m, len(deltas) * n, deltas[0]), cutoff)
    merged = merge([(v * values).to(deltas[0].dtype) for v in vectors.split(n)])
    return product(rows, (vectors / values) @ merged.T.double(), torch.empty_like(deltas[0]))


def merged_parts(
    parts: Sequence[torch.Tensor], weights: Sequence[float], densities: Sequence[float], elect: bool
) -> torch.Tensor:
    """The weighted sum of masked parts; with an election, the weighted mean of those that agree in sign.

    0 where votes sum to 0: the sign of a singular vector is arbitrary, so no side is preferred.
    """
    values = [w * trimmed(t, density) for t, w, density in zip(parts, weights, densities, strict=True)]
    votes = added(values)
    if not elect:
        return votes
    decided = votes.abs() > CANCELLED[votes.dtype] * added(v.abs() for v in values)
    agreeing = [(torch.where(votes < 0, v < 0, v > 0) & decided).to(v.dtype) for v in values]
    merged = added(v * a for v, a in zip(values, agreeing, strict=True))
    divisor = added(w * a for w, a in zip(weights, agreeing, strict=True))
    return merged / torch.where(divisor == 0, 1.0, divisor)


def trimmed(t: torch.Tensor, density: float) -> torch.Tensor:
    """The elements of largest magnitude, with all ties; 0 elsewhere."""
    count = kept_count(density, t.numel())
    if count >= t.numel():
        return t
    if count == 0:
        return torch.zeros_like(t)
    magnitudes = t.abs()
    threshold = torch.kthvalue(magnitudes.flatten(), t.numel() - count + 1).values
    return torch.where(magnitudes >= threshold, t, 0.0)
