"""Dense algebra for methods that merge matrices: in float64, in blocks of rows, and on the range only.

Singular values and vectors come from the Gram matrix of the short side. In float64 that resolves ratios of singular
values down to about 1e-7, which is what differences of float32 weights carry. It costs two matrix products and one
symmetric eigenproblem however long the other side is, and never holds a float64 copy of a tensor. Where a matrix has a
lower rank, what it does not determine is left at zero: no arbitrary vectors of a null space enter a result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch

from ..finite import all_finite

BLOCK = 1 << 23  # float64 elements of a block of rows
PANEL = 384  # columns of a Gram matrix made at a time: 0.65 of the time of whole products, for they need no upper half
RANGE = 1e-6  # singular values below this share of the largest are rounding, where no parameter says otherwise
WELL_CONDITIONED = 1e-9  # of a Cholesky factor's squared diagonal, least to largest

Rows = Callable[[slice], torch.Tensor]  # a tall matrix: some of its rows in float64
Times = Callable[[torch.Tensor], Rows]  # its product with a matrix on its right


def blocks(rows: int, columns: int) -> Iterator[slice]:
    step = max(1, BLOCK // max(1, columns))
    for start in range(0, rows, step):
        yield slice(start, min(rows, start + step))


def added(terms: Iterable[torch.Tensor]) -> torch.Tensor:
    """Their sum, the first two first; at least one."""
    total = sum(terms)
    assert isinstance(total, torch.Tensor)
    return total


def rows_of(a: torch.Tensor) -> Rows:
    return lambda part: a[part].double()


def gram(rows: Rows, count: int, columns: int, like: torch.Tensor) -> torch.Tensor:
    """A^T A of a matrix of `count` rows, (columns, columns) float64. Raises OverflowError if squares overflow."""
    total = torch.zeros(columns, columns, dtype=torch.float64, device=like.device)
    for part in blocks(count, columns):
        block = rows(part)
        for start in range(0, columns, PANEL):
            total[start:, start : start + PANEL].addmm_(block[:, start:].T, block[:, start : start + PANEL])
    for start in range(0, columns, PANEL):
        total[start : start + PANEL, start + PANEL :] = total[start + PANEL :, start : start + PANEL].T
    if not all_finite(total):
        raise OverflowError("squares of its elements overflow float64")
    return total


def singular(
    symmetric: torch.Tensor, cutoff: float, most: int | None = None, largest: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Singular values of A and right singular vectors as columns, from A^T A: the `most` largest of those above cutoff
    times the first, or times `largest` if that is more."""
    squares, vectors = torch.linalg.eigh(symmetric)
    values, vectors = squares.flip(0).clamp(min=0).sqrt(), vectors.flip(1)
    rank = int((values > cutoff * max(largest, float(values[0]))).sum())
    rank = rank if most is None else min(rank, most)
    return values[:rank], vectors[:, :rank]


def inverse_root(symmetric: torch.Tensor) -> torch.Tensor:
    """(A^T A)^(-1/2) on the range of A: A times it is its polar factor, the nearest with orthonormal columns."""
    values, vectors = singular(symmetric, RANGE)
    return (vectors / values) @ vectors.T


def product(rows: Rows, right: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """A right, in blocks of rows, into `out`, which is returned."""
    for part in blocks(out.shape[0], max(right.shape)):
        out[part] = (rows(part) @ right).to(out.dtype)
    return out


def solve(numerator: torch.Tensor, symmetric: torch.Tensor) -> torch.Tensor:
    """X with X H = N and no part outside the range of a positive semidefinite H. (m, n), (n, n) -> (m, n) float64.

    By Cholesky where H is well conditioned, else by its eigenvectors.
    """
    factor, info = torch.linalg.cholesky_ex(symmetric)
    squares = factor.diagonal() ** 2
    if int(info) == 0 and bool(squares.min() > WELL_CONDITIONED * squares.max()):
        return torch.cholesky_solve(numerator.T, factor).T
    values, vectors = singular(symmetric, RANGE)
    return (numerator @ (vectors / values**2)) @ vectors.T


def quotient(
    rows: Rows, middle: torch.Tensor, symmetric: torch.Tensor, out: torch.Tensor, shares: Sequence[float] = ()
) -> torch.Tensor:
    """A M H^+ into `out`, which is returned; of A = [A_1 A_2 ...] with `shares` also sum s_k A_k.

    In the order that takes less: A (m, k) by its rows, M (k, n), H (n, n) as in `solve`.
    """
    k, n = middle.shape
    if out.shape[0] > k:
        factors = solve(middle, symmetric)
        for share, own in zip(shares, factors.split(n), strict=False):
            own.diagonal().add_(share)
        return product(rows, factors, out)
    found = solve(product(rows, middle, middle.new_empty(out.shape)), symmetric)
    for part in blocks(out.shape[0], k) if shares else ():
        for share, own in zip(shares, rows(part).split(n, 1), strict=True):
            found[part].add_(own, alpha=share)
    return out.copy_(found)


class Part:
    """Singular triplets of a tall matrix A: values (k,), right vectors (n, k), and left ones as A times `weights`.

    times: where there is a shorter way to A B than through the rows of A.
    """

    def __init__(self, rows: Rows, values: torch.Tensor, vectors: torch.Tensor, times: Times | None = None) -> None:
        self.values, self.right, self.weights = values, vectors, vectors / values
        self.left = times(self.weights) if times else lambda part: rows(part) @ self.weights


def recombined(parts: Sequence[Part], diagonal: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """polar(U) diag(diagonal) polar(V)^T of the parts' columns side by side, into `out` (m, n).

    U is never held: its rows are made twice, once for U^T U and once for the product.
    """
    if not diagonal.numel():
        return out.zero_()
    right = torch.cat([p.right for p in parts], 1)
    right = right @ inverse_root(right.T @ right)

    def left(part: slice) -> torch.Tensor:
        return torch.cat([p.left(part) for p in parts], 1)

    root = inverse_root(gram(left, out.shape[0], diagonal.numel(), out))
    return product(left, (root * diagonal) @ right.T, out)
