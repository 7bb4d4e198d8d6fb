"""Dense algebra for methods on matrices: in float64, in blocks of rows, and on the range only.

Singular values and vectors come from the Gram matrix of the short side. In float64 that resolves ratios of singular
values down to about 1e-7. Differences of float32 weights carry no more. It takes two matrix products and one symmetric
eigenproblem, however long the other side is. It never holds a float64 copy of a tensor. If a matrix has a lower rank,
the undetermined part of a result is zero: arbitrary vectors of a null space are never used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch

from ..finite import all_finite

BLOCK = 1 << 23  # float64 elements of a block of rows
PANEL = 384  # columns of a Gram matrix at a time: 0.65 of the time of whole products, as the upper half is mirrored
RANGE = 1e-6  # singular values below this share of the largest are rounding, unless a parameter says otherwise
WELL_CONDITIONED = 1e-9  # of a Cholesky factor's squared diagonal, least to largest

Rows = Callable[[slice], torch.Tensor]  # a tall matrix: gives some of its rows in float64
Times = Callable[[torch.Tensor], Rows]  # gives its product with a matrix on the right


def blocks(rows: int, columns: int) -> Iterator[slice]:
    """Slices of the rows, about BLOCK elements each."""
    step = max(1, BLOCK // max(1, columns))
    for start in range(0, rows, step):
        yield slice(start, min(rows, start + step))


def added(terms: Iterable[torch.Tensor]) -> torch.Tensor:
    """The sum of at least one term, added from the first to the last."""
    total = sum(terms)
    assert isinstance(total, torch.Tensor)
    return total


def rows_of(a: torch.Tensor) -> Rows:
    """A matrix as Rows."""
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
    """Singular values of A, largest first, and right singular vectors as columns, from A^T A.

    Only values above cutoff times the largest one, or times `largest` if that is more; at most `most` of them.
    """
    squares, vectors = torch.linalg.eigh(symmetric)
    values, vectors = squares.flip(0).clamp(min=0).sqrt(), vectors.flip(1)
    rank = int((values > cutoff * max(largest, float(values[0]))).sum())
    rank = rank if most is None else min(rank, most)
    return values[:rank], vectors[:, :rank]


def inverse_root(symmetric: torch.Tensor) -> torch.Tensor:
    """(A^T A)^(-1/2) on the range of A. A times it is A's polar factor: the nearest matrix of orthonormal columns."""
    values, vectors = singular(symmetric, RANGE)
    return (vectors / values) @ vectors.T


def product(rows: Rows, right: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Computes A right in blocks of rows, into `out`, and returns `out`."""
    for part in blocks(out.shape[0], max(right.shape)):
        out[part] = (rows(part) @ right).to(out.dtype)
    return out


def solve(numerator: torch.Tensor, symmetric: torch.Tensor) -> torch.Tensor:
    """Solves X H = N for X, (m, n) float64, with no part outside the range of H.

    N is (m, n); H is (n, n) and positive semidefinite. By a Cholesky factor if H is well conditioned, else by
    eigenvectors.
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
    """Computes A M H^+ into `out`, and returns `out`. With `shares`, sum s_k A_k is added, for A = [A_1 A_2 ...].

    A is (m, k) as Rows, M is (k, n), H is (n, n) as in `solve`. The order of products is the cheaper one.
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
    """Singular triplets of a tall matrix A: values (k,), right vectors (n, k), left vectors as A times `weights`.

    times: a shorter way to A B than through the rows of A, if there is one.
    """

    def __init__(self, rows: Rows, values: torch.Tensor, vectors: torch.Tensor, times: Times | None = None) -> None:
        self.values, self.right, self.weights = values, vectors, vectors / values
        self.left = times(self.weights) if times else lambda part: rows(part) @ self.weights


def recombined(parts: Sequence[Part], diagonal: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Computes polar(U) diag(diagonal) polar(V)^T into `out` (m, n). U and V are the parts' vectors side by side.

    U is never held: its rows are computed twice, once for U^T U and once for the product.
    """
    if not diagonal.numel():
        return out.zero_()
    right = torch.cat([p.right for p in parts], 1)
    right = right @ inverse_root(right.T @ right)

    def left(part: slice) -> torch.Tensor:
        return torch.cat([p.left(part) for p in parts], 1)

    root = inverse_root(gram(left, out.shape[0], diagonal.numel(), out))
    return product(left, (root * diagonal) @ right.T, out)
