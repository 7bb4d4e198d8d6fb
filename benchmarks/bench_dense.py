"""Methods on matrices beside the decompositions that torch itself takes of the same matrices, in turn with them.

A layer's weights of TARGET_SHAPE, bf16, three models. What torch is timed on is what the method's definition names: the
singular value decomposition of each delta (tsv, knots: of all side by side) or of their sum, in float32, thin; for wudi
the products and the one solution of K linear systems; for regmean, which is given the Gram matrices, the product with
each, the Cholesky factor of their sum and what it solves.

A merge of qwen2.5-0.5b has 72 matrices of this size, 96 smaller ones and an embedding, so by these figures it takes a
minute (iso_c) or many: none of these methods has a row among the whole merges.

In float64, which takes twice as long, regmean needs K - 1 products, the factor and the solution at least: 1.6, 1.1 and
0.9 s with one thread of an EPYC. It takes 4.8 to 5.8; K products, factor and solution in float32 take 3.0.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import pytest
import torch
import warpmerge as wm

from .figures import ratio

SHAPE = (896, 4864)
MODELS = 3
ROUNDS = 3
Matrices = Sequence[torch.Tensor]


def _svd(matrix: torch.Tensor) -> None:
    torch.linalg.svd(matrix, full_matrices=False)


def _each(deltas: Matrices) -> None:
    for delta in deltas:
        _svd(delta)


def _sum(deltas: Matrices) -> None:
    _svd(sum(deltas))


def _sum_and_each(deltas: Matrices) -> None:
    _sum(deltas)
    _each(deltas)


def _side_by_side(deltas: Matrices) -> None:
    _svd(torch.cat(list(deltas), dim=1))


def _given_grams(weights: Matrices, grams: Matrices) -> None:
    scaled = [0.9 * g for g in grams]
    for s, g in zip(scaled, grams, strict=True):
        s.diagonal().copy_(g.diagonal())
    right = sum(w @ g for w, g in zip(weights, scaled, strict=True))
    summed = sum(scaled)
    summed.diagonal().add_(1e-6 * summed.diagonal().mean())
    torch.cholesky_solve(right.T, torch.linalg.cholesky(summed))


def _systems(deltas: Matrices) -> None:
    grams = [d.T @ d for d in deltas]
    right = sum(d @ g for d, g in zip(deltas, grams, strict=True))
    torch.linalg.solve(sum(grams) + 1e-3 * torch.eye(len(grams[0])), right.T)


CASES: dict[str, tuple[str, Callable[..., None]]] = {
    "tsv": ("SVD of each delta", _each),
    "iso_c": ("SVD of their sum", _sum),
    "iso_cts": ("SVD of their sum and of each", _sum_and_each),
    "knots": ("SVD of all side by side", _side_by_side),
    "wudi": ("products and a solution", _systems),
    "regmean": ("products and a Cholesky solution", _given_grams),
}


@pytest.mark.parametrize("method", CASES)
def test_dense(benchmark, method: str) -> None:
    generator = torch.Generator().manual_seed(0)
    base = (torch.randn(SHAPE, generator=generator) * 0.02).bfloat16()
    models = [(base.float() + torch.randn(SHAPE, generator=generator) * 2e-3).bfloat16() for _ in range(MODELS)]
    deltas = [m.float() - base.float() for m in models]
    name, decompose = CASES[method]
    given = {} if method == "wudi" else {"weight": 1.0}
    operands = [deltas]
    if method == "regmean":
        given["gram"] = [d.T @ d for d in deltas]
        operands = [[m.float() for m in models], given["gram"]]
    merge = lambda: wm.merge_tensors(models, method, base=None if method == "regmean" else base, **given)  # noqa: E731
    assert torch.isfinite(merge()).all()
    torch_seconds: list[float] = []

    def setup() -> None:
        start = time.perf_counter()
        decompose(*operands)
        torch_seconds.append(time.perf_counter() - start)

    benchmark.group = "dense"
    benchmark.pedantic(merge, setup=setup, rounds=ROUNDS)
    if benchmark.stats is None:
        return
    benchmark.extra_info |= {
        "what": method,
        "shape": f"{SHAPE[0]} x {SHAPE[1]}",
        "models": MODELS,
        "torch": {"name": name, "median": statistics.median(torch_seconds)},
        "ratio": ratio(benchmark.stats.stats.data, torch_seconds),
    }
