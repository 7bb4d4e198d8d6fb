"""Least squares in closed form: matrices whose outputs come closest to those of several models, in torch.

`wudi` asks for the matrix that interferes least with the deltas, `regmean` for the matrix whose outputs on given inputs
are closest to the models' own. Both are linear equations X H = N with a positive semidefinite H of the size of a side.
linalg.solve takes a Cholesky factor of H, or its eigenvectors. So the minimum costs a few matrix products instead of
hundreds of steps of descent; it needs float64 copies of square matrices.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..finite import all_finite
from .linalg import Rows, gram, product, quotient, rows_of, solve

TILE = 256  # rows and columns; a matrix of 4864 takes 0.07 s in tiles, 0.37 s at once (one thread)


def least_interference(deltas: Sequence[torch.Tensor]) -> torch.Tensor:
    """(sum d_k H_k) (sum H_k)^+ with H_k = d_k^T d_k / |d_k|^2, for deltas (rows, columns)."""
    lengths = [float(torch.linalg.vector_norm(d, dtype=torch.float64)) for d in deltas]
    if not any(lengths):
        return torch.zeros_like(deltas[0])
    kept = [(d, length) for d, length in zip(deltas, lengths, strict=True) if length > 0]
    m, n = deltas[0].shape
    out = torch.empty_like(deltas[0])
    if n <= len(kept) * m:
        squares = torch.stack([gram(rows_of(d), m, n, d).div_(length**2) for d, length in kept])
        return quotient(beside([d for d, _ in kept]), squares.view(-1, n), squares.sum(0), out)

    # With fewer rows than columns, the same on the side of the rows: t = B (A A^T)^+ A. A has the deltas, divided by
    # their norms, below each other. B has |d_k| A_k A_k^T side by side.
    def columns(part: slice) -> torch.Tensor:
        return torch.cat([d.T[part].double() / length for d, length in kept], 1)

    squares = gram(columns, n, len(kept) * m, out)
    own = [length * squares[i * m : (i + 1) * m, i * m : (i + 1) * m] for i, (_, length) in enumerate(kept)]
    factors = solve(torch.cat(own, 1), squares)
    return product(columns, factors.T, torch.empty_like(out.T)).T


def least_squares(
    weights: Sequence[torch.Tensor],
    grams: Sequence[torch.Tensor],
    shares: Sequence[float],
    alpha: float,
    ridge: float,
) -> torch.Tensor:
    """The merged weights: the first model plus sum d_k (s_k (G_k - G) (G + r I)^-1 + s_k I), G = sum s_k G_k.

    d_k is the difference to the first model. So the first model needs no product, and equal models keep their bits.

    Args:
        weights: K matrices (out, in).
        grams: K matrices (in, in).
        shares: K numbers s_k with the sum 1.
        alpha: factor of the off-diagonal elements of the grams.
        ridge: r, as a share of the mean diagonal element of G.
    """
    if float(min(g.diagonal().min() for g in grams)) < 0:
        raise ValueError("one of its grams has elements below 0 on the diagonal, so it is not X^T X of any inputs")
    (first, *others), n = weights, weights[0].shape[1]
    own = torch.empty(len(grams), n, n, dtype=torch.float64, device=first.device)
    for g, share, room in zip(grams, shares, own, strict=True):
        _scaled(g, alpha, share, room)
    summed, own = own[0], own[1:]
    for room in own:
        summed += room
    if not all_finite(summed):
        raise OverflowError("its grams overflow float64")
    if not others:
        return first
    for share, room in zip(shares[1:], own, strict=True):
        room.sub_(summed, alpha=share)
    summed.diagonal().add_(ridge * float(summed.diagonal().mean()))
    moved = quotient(beside(others, first), own.view(-1, n), summed, torch.empty_like(first), shares[1:])
    return torch.where(moved == 0, first, moved.add_(first))


def beside(matrices: Sequence[torch.Tensor], less: torch.Tensor | None = None) -> Rows:
    """The matrices side by side, as Rows. less: a matrix to subtract from each."""
    if less is None:
        return lambda part: torch.cat([m[part].double() for m in matrices], 1)
    return lambda part: torch.cat([m[part].double() - less[part].double() for m in matrices], 1)


def _scaled(gram: torch.Tensor, alpha: float, share: float, out: torch.Tensor) -> None:
    """Writes share times the symmetric part of a gram into `out`, float64. Off-diagonal elements: times alpha too."""
    parts = [slice(start, start + TILE) for start in range(0, len(gram), TILE)]
    for i, down in enumerate(parts):
        for across in parts[: i + 1]:
            tile = gram[down, across].to(torch.float64, copy=True)
            tile = tile.add_(gram[across, down].T).mul_(share * alpha / 2)
            out[down, across], out[across, down] = tile, tile.T
    out.diagonal().copy_(gram.diagonal()).mul_(share)
