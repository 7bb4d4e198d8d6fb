"""Each kernel on its own: a launch table over operands on the device, queued again and again.

Bytes are counted by hand: each input and the base once, the output once. The roof is measured beside every kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from warpmerge.backends.cpu.backend import CpuBackend
from warpmerge.backends.gpu.tables import BLOCK, blocks_of
from warpmerge.expr.patterns import KeptMagnitudes
from warpmerge.requests import (
    ElectAndSum,
    Gram,
    KthLargest,
    Mask,
    RandomMask,
    Reduce,
    WeightedSum,
)

from ..figures import rates
from ..operands import DTYPES, WEIGHTS
from . import rows
from .harness import Bench, CopyRoof, synchronize
from .problem import Operands, Problem, Work, checked_combine, on_cpu
from .search import Searched

REACH = {
    ("weighted_sum", "inputs"): ">= 90 %",
    ("weighted_sum", "deltas"): ">= 90 %",
    ("elect_and_sum", "threshold"): ">= 85 %",
    ("elect_and_sum", "drawn"): ">= 85 %",
    ("gram", "deltas"): ">= 80 %",
    ("select", "first sweep"): ">= 60 %",
    ("select", "second sweep"): ">= 60 %",
}
HEADLINE = ("bf16", 3)  # what the targets are about
CUT = 32768  # of a random drop: half


def run(bench: Bench) -> None:
    roof = CopyRoof(bench)
    operands = operands_for(bench)
    for dtype, models in bench.sizes.kernel_cases:
        operands.keep_only(dtype)
        for work in works(bench, operands, dtype, models):
            bench.check_time()
            work.check()
            seconds = bench.clock.queued(work.queue, bench.sizes.repetitions)
            headline = (dtype, models) == HEADLINE
            bench.row(
                "gpu kernel",
                work.what,
                seconds,
                kernel=work.kernel,
                dtype=dtype,
                models=models,
                regime="resident",
                bytes=work.nbytes,
                reach=REACH.get((work.kernel, work.what)) if headline else None,
                **rates(work.nbytes, seconds, roof.rate()),
            )


def once(bench: Bench, dtype: str, models: int) -> None:
    """Queues every kernel, unchecked: to compile it, or to be looked at by a profiler."""
    for work in works(bench, operands_for(bench), dtype, models):
        work.queue()
    synchronize(bench.device)


def operands_for(bench: Bench) -> Operands:
    """Long enough for two models without a base."""
    return Operands(bench.device, max(bench.sizes.kernel_bytes // 2, 4 * bench.sizes.checked))


def works(bench: Bench, operands: Operands, dtype: str, models: int) -> Iterator[Work]:
    """The kernels on `models` models of a dtype, one after the other: each frees its memory."""

    def problem(count: int | None = None, **more: Any) -> Problem:
        reads = models + more["base"]
        count = count or max(8, bench.sizes.kernel_bytes // (reads * DTYPES[dtype].itemsize) // 8 * 8)
        return Problem(bench.backend, operands, dtype, models, count, **more)

    yield _weighted_sum(bench, problem, on_deltas=False)
    yield _weighted_sum(bench, problem, on_deltas=True)
    drawn = tuple(RandomMask(key=0x9E3779B97F4A7C15 + k, cut=CUT) for k in range(models))
    searched = Searched(problem(base=True))
    yield _elect_and_sum(bench, problem, "threshold", tuple(s.keep() for s in searched.found()), elect=True)
    yield _elect_and_sum(bench, problem, "drawn", drawn, elect=False)
    yield from _select(bench, searched, Searched(problem(bench.sizes.checked, base=True)))
    del searched
    yield from _sums(bench, problem, "kept", drawn)
    yield from _sums(bench, problem, "plain", ())
    yield _gram(bench, problem)
    yield from rows.works(bench, problem, dtype, models)


def _weighted_sum(bench: Bench, problem: Callable[..., Problem], *, on_deltas: bool) -> Work:
    """By the kernel for it, or by its expression where there is none."""
    p = problem(base=on_deltas, output=True, numbers=lambda k: WEIGHTS[:k])
    what = "deltas" if on_deltas else "inputs"
    request = WeightedSum(WEIGHTS[: p.models], on_deltas=on_deltas, agree=not on_deltas)
    if not hasattr(p.kernels, "weighted_sum"):
        return rows.mapped(bench, problem, request.as_map(p.models), "weighted_sum", what)

    def queue() -> None:
        p.kernels.weighted_sum(p.stream, p.launch, not on_deltas, p.nonfinite.data_ptr())

    return Work("weighted_sum", what, p.nbytes, queue, checked_combine(bench, p, request, queue))


def _elect_and_sum(
    bench: Bench, problem: Callable[..., Problem], what: str, keep: tuple[Mask, ...], *, elect: bool
) -> Work:
    def numbers(k: int) -> tuple[float, ...]:
        return (*WEIGHTS[:k], *WEIGHTS[:k], *WEIGHTS[:k], 1.0)

    p = problem(base=True, output=True, numbers=numbers, keep=keep)

    def queue() -> None:
        p.kernels.elect_and_sum(p.stream, p.launch, elect, p.nonfinite.data_ptr())

    weights = WEIGHTS[: p.models]
    request = ElectAndSum(weights, keep, vote=weights, divisor=weights, elect=elect)
    return Work("elect_and_sum", what, p.nbytes, queue, checked_combine(bench, p, request, queue))


# --- measuring kernels ----------------------------------------------------------------------------------------------


class Reduction:
    """Partial sums of the blocks of `count` elements, and their reduction."""

    def __init__(self, p: Problem, partials: torch.Tensor, count: int) -> None:
        self._p, self._partials = p, partials
        self._ranges = torch.tensor([[0, blocks_of(count)]], device=p.device)
        self._result = torch.zeros(partials.shape[1], dtype=torch.float64, device=p.device)
        self.nbytes = blocks_of(count) * partials.shape[1] * 8

    def queue(self) -> None:
        width, addresses = self._partials.shape[1], (self._partials.data_ptr(), self._ranges.data_ptr())
        self._p.kernels.reduce_blocks(self._p.stream, *addresses, 1, width, self._result.data_ptr())

    def values(self) -> list[float]:
        self.queue()
        return self._result.tolist()


def _sums(bench: Bench, problem: Callable[..., Problem], what: str, keep: tuple[Mask, ...]) -> Iterator[Work]:
    """Sums of deltas, or with masks of magnitudes and of those that are kept."""
    p = problem(base=True, keep=keep) if keep else problem(base=True)
    columns = p.models * (2 if keep else 1)
    partials = torch.zeros(blocks_of(p.count), columns, dtype=torch.float64, device=p.device)
    kernel = p.kernels.kept_sums if keep else p.kernels.tensor_sums
    request = Reduce("sum", KeptMagnitudes(keep) if keep else None)

    def queue() -> None:
        kernel(p.stream, p.launch, partials.data_ptr(), p.nonfinite.data_ptr())

    def check() -> None:
        queue()
        count = _whole_blocks(p, bench)
        got = Reduction(p, partials, count).values()
        wanted = on_cpu(CpuBackend(), p, request, count)[0].value
        assert tuple(got) == wanted, f"{got}, not {wanted}"

    yield Work("sums", what, p.nbytes, queue, check)
    # Its sums were compared above; repeated, it adds up what it has left.
    reduction = Reduction(p, partials, p.count)
    yield Work("reduce_blocks", what, reduction.nbytes, reduction.queue, lambda: None)


def _gram(bench: Bench, problem: Callable[..., Problem]) -> Work:
    p = problem(base=True)
    width = p.models * (p.models + 1) // 2
    partials = torch.zeros(blocks_of(p.count), width, dtype=torch.float64, device=p.device)

    def queue() -> None:
        p.kernels.gram(p.stream, p.launch, partials.data_ptr(), p.nonfinite.data_ptr())

    def check() -> None:
        queue()
        count = _whole_blocks(p, bench)
        wanted = on_cpu(CpuBackend(), p, Gram(on_deltas=True), count)[0].value
        distances = [wanted.distances_sq[i][k] for i in range(p.models) for k in range(i + 1, p.models)]
        assert Reduction(p, partials, count).values() == [*wanted.norms_sq, *distances]

    return Work("gram", "deltas", p.nbytes, queue, check)


def _whole_blocks(p: Problem, bench: Bench) -> int:
    """So many elements are compared that no block of the sums is cut."""
    return p.count if p.count <= bench.sizes.checked else bench.sizes.checked // BLOCK * BLOCK


def _select(bench: Bench, whole: Searched, part: Searched) -> Iterator[Work]:
    p = whole.p

    def check() -> None:
        part.run()
        wanted = on_cpu(CpuBackend(), part.p, KthLargest((part.p.count // 2,) * p.models), part.p.count)[0].value
        assert part.found() == wanted, f"{part.found()}, not {wanted}"
        whole.check()

    yield Work("select", f"whole, {whole.sweeps} sweeps", p.nbytes, whole.run, check)
    # One sweep alone leaves the state as it is, so it can be repeated.
    yield Work("select", "first sweep", p.nbytes, whole.sweep, whole.begin)

    def shrunk() -> None:
        whole.begin()
        whole.sweep()
        whole.shrink_interval()

    yield Work("select", "second sweep", p.nbytes, whole.sweep, shrunk)
