"""Least squares in closed form: matrices that come closest to what several models compute, in torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .linalg import gram, product, rows_of, solve


def least_interference(deltas: Sequence[torch.Tensor]) -> torch.Tensor:
    """(sum d_k H_k) (sum H_k)^+ with H_k = d_k^T d_k / |d_k|^2, for deltas (rows, columns)."""
    lengths = [float(torch.linalg.vector_norm(d, dtype=torch.float64)) for d in deltas]
    if not any(lengths):
        return torch.zeros_like(deltas[0])
    kept = [(d, length) for d, length in zip(deltas, lengths, strict=True) if length > 0]
    m, n = deltas[0].shape
    out = torch.empty_like(deltas[0])
    if n <= len(kept) * m:
        squares = torch.stack([gram(rows_of(d), m, n, d) / length**2 for d, length in kept])
        factors = solve(squares.reshape(-1, n), squares.sum(0))
        return product(lambda part: torch.cat([d[part].double() for d, _ in kept], 1), factors, out)

    # With fewer rows than columns: the same on the rows' side, t = B (A A^T)^+ A with the deltas, of length 1, below
    # each other in A and |d_k| A_k A_k^T beside each other in B.
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
    """mean + sum (x_k - mean) G_k (sum G_k + r I)^-1, from differences to the first model: equal ones stay as they are.

    weights: (out, in) each. grams: (in, in). shares: of the models, their sum is 1.
    """
    first, n = weights[0], weights[0].shape[1]
    stacked = torch.stack([_scaled(g, alpha) * share for g, share in zip(grams, shares, strict=True)])
    summed = stacked.sum(0)
    if not bool(torch.isfinite(summed).all()):
        raise OverflowError("its grams overflow float64")
    if float(min(g.diagonal().min() for g in grams)) < 0:
        raise ValueError("one of its grams has elements below 0 on the diagonal, so it is not X^T X of any inputs")
    summed.diagonal().add_(ridge * float(summed.diagonal().mean()))
    if not bool(summed.any()):
        factors = torch.zeros_like(stacked)
    else:
        factors = solve(stacked.reshape(-1, n), summed).view(-1, n, n)
    to_mean = torch.eye(n, dtype=torch.float64, device=first.device) - factors.sum(0)
    factors = torch.cat([share * to_mean + f for share, f in zip(shares, factors, strict=True)])

    def rows(part: slice) -> torch.Tensor:
        return torch.cat([w[part].double() - first[part].double() for w in weights], 1)

    moved = product(rows, factors, torch.empty_like(first))
    return torch.where(moved == 0, first, first + moved)


def _scaled(gram: torch.Tensor, alpha: float) -> torch.Tensor:
    """Its symmetric part in float64, the elements off the diagonal times alpha."""
    wide = gram.double()
    result = (wide + wide.T) * (alpha / 2)
    result.diagonal().copy_(wide.diagonal())
    return result
