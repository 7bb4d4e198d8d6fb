"""Every accelerator against the expression that defines it: what is asked, and about which tensors.

The reference carries out the expression; a backend carries out the request, and has to come to the same bits.
A GPU kernel goes over a chunk in one of two ways. `compare_one` has a full chunk of finite deltas, which is the fast
way, and then any values, which is the masked way; in tiles these are a segment that does not begin with its tensor.
`compare_many` has tensors of one row, of less than a chunk, and of more, which share launches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import cache
from typing import Any, NamedTuple

import torch
from formula_helpers import KEY, adversarial, assert_same_tensors, is_wide, prepared
from kernel_helpers import ALL_DTYPES, reference
from warpmerge.backends.gpu.tables import CHUNK
from warpmerge.expr.formula import Formula
from warpmerge.expr.patterns import KeptMagnitudes
from warpmerge.requests import (
    KEEP_ALL,
    KEEP_NONE,
    ElectAndSum,
    Mask,
    RandomMask,
    RankMask,
    Reduce,
    TopKMask,
    WeightedSum,
)
from warpmerge.tasks import Outcome, TensorTask

INF, NAN = float("inf"), float("nan")
COLUMNS = 29  # elements of a row, for masks by rank
LENGTHS = (COLUMNS, 11 * COLUMNS, (CHUNK // COLUMNS + 11) * COLUMNS)
WEIGHTS = (1.0, -0.7, 0.3, 0.25, 1.5)
MODELS = (1, 2, 3, 5)
POLICIES = ("propagate", "base", "error")
BY_RANK = RankMask(KEY, 9000.0, 1500.5, COLUMNS)

Pattern = ElectAndSum | WeightedSum | Reduce
Backends = Sequence[Callable[[Sequence[TensorTask]], AbstractContextManager[Any]]]  # each is made for given tasks


class Case(NamedTuple):
    request: Pattern
    tensors: Sequence[torch.Tensor]
    base: torch.Tensor

    def prepared(self, nonfinite: str) -> tuple[TensorTask, list[torch.Tensor]]:
        """A task and what it writes."""
        request, models = self.request, len(self.tensors)
        outputs = len(request.coefficients) // models if isinstance(request, WeightedSum) else 1
        base = self.base if request.on_deltas else None
        return prepared(self.tensors, base, outputs=outputs, nonfinite=nonfinite)

    def expression(self) -> Any:
        """The request that defines the pattern."""
        if isinstance(self.request, Reduce):
            assert self.request.terms is not None
            return Reduce("sum", Formula(self.request.terms.values))
        return self.request.as_map(len(self.tensors))


def masks(fp64: bool) -> tuple[Mask, ...]:
    """Of each kind. Many magnitudes are 1; ties end among the first elements, and in the second chunk."""
    one = 0x3FF << 52 if fp64 else 0x7F << 23
    return TopKMask(one, 200), RandomMask(KEY, 30_000), TopKMask(one, CHUNK + 100), KEEP_ALL, KEEP_NONE, BY_RANK


def elections(models: int, kinds: Sequence[Mask]) -> Iterator[ElectAndSum]:
    """With masks of each kind, votes of each kind, with and without a divisor and an election."""
    w, zero, one = WEIGHTS[:models], (0.0,) * models, (1.0,) * models
    votes = [(one, zero), (w, w), (WEIGHTS[-models:], one), (one, (0.5, *zero[1:]))]
    for keep in ((KEEP_ALL,) * models, tuple(kinds[:models]), tuple(kinds[-models:])):
        yield ElectAndSum(w, keep, lambda_=0.9)
        for vote, divisor in votes:
            yield ElectAndSum(w, keep, vote, divisor, -0.9, elect=True)


def sums(models: int) -> Iterator[WeightedSum]:
    """Of deltas, of inputs, of inputs that may agree; one and two outputs; of which the sign of 0 is all."""
    w = WEIGHTS[:models]
    yield from (WeightedSum(w, on_deltas) for on_deltas in (True, False))
    yield WeightedSum((1 / models,) * models, False, agree=True)
    yield WeightedSum((*w, *WEIGHTS[-models:]), True)
    yield from (WeightedSum((zero,) * models, False) for zero in (0.0, -0.0))


def magnitudes(models: int, kinds: Sequence[Mask]) -> Iterator[Reduce]:
    """Sums of |delta|, and of what masks of each kind leave of it."""
    for keep in (kinds[:models], kinds[-models:]):
        yield Reduce("sum", KeptMagnitudes(keep))


@cache
def requests(fp64: bool, *, by_rank: bool = True) -> list[tuple[int, Pattern]]:
    """(models, request). `by_rank`: with masks by rank too, for which a kernel may leave the work to the expression."""
    kinds = masks(fp64) if by_rank else masks(fp64)[:-1]
    return [(k, request) for k in MODELS for request in (*elections(k, kinds), *sums(k), *magnitudes(k, kinds))]


NUMBER = len(requests(False))


def compare(backends: Backends, *cases: Case, nonfinite: str = "propagate") -> None:
    """Those that are alike share launches."""

    def carry_out(backend: Any, requests: Sequence[Any]) -> tuple[list[Outcome], list[list[torch.Tensor]]]:
        made = [case.prepared(nonfinite) for case in cases]
        work = [(task, request) for (task, _), request in zip(made, requests, strict=True)]
        return backend.launch(work).wait(), [results for _, results in made]

    wanted, written = carry_out(reference(), [case.expression() for case in cases])
    for make in backends:
        with make([case.prepared(nonfinite)[0] for case in cases]) as backend:
            got, results = carry_out(backend, [case.request for case in cases])
        for number, case in enumerate(cases):
            what = backend.name, case.request, nonfinite
            assert got[number].nonfinite == wanted[number].nonfinite, what
            if isinstance(case.request, Reduce):
                assert got[number].value == wanted[number].value, what
            assert_same_tensors(results[number], written[number], what)


def compare_many(backends: Backends, dtype: str, models: Sequence[int] = MODELS, *, by_rank: bool = True) -> None:
    """All requests in one batch, about tensors of several lengths, of any values."""
    cases = []
    for number, (k, request) in enumerate(requests(is_wide(dtype), by_rank=by_rank)):
        if k in models:
            base, tensors = adversarial(dtype, k, LENGTHS[number % len(LENGTHS)], seed=number)
            cases.append(Case(request, tensors, base))
    compare(backends, *cases)


def compare_one(backends: Backends, number: int, *, by_rank: bool = True) -> None:
    """One of the requests about a full chunk of finite deltas, and a rest of any.

    Dtypes, and what is done with values that are not finite, take turns.
    """
    dtype, nonfinite = ALL_DTYPES[number % len(ALL_DTYPES)], POLICIES[number // len(ALL_DTYPES) % len(POLICIES)]
    models, request = requests(is_wide(dtype), by_rank=by_rank)[number]
    base, tensors = adversarial(dtype, models, LENGTHS[-1], seed=number)
    for tensor in (base, *tensors):
        chunk = tensor[:CHUNK]
        chunk[~(chunk.abs() < 1e30)] = 1.0
    assert all(bool(torch.isfinite(t[:CHUNK].double() - base[:CHUNK].double()).all()) for t in tensors)
    compare(backends, Case(request, tensors, base), nonfinite=nonfinite)


def compare_votes(backends: Backends) -> None:
    """Votes that cancel, are zero or not numbers."""
    values = torch.tensor([0.0, -0.0, 1.0, -1.0, 2.0, -3.0, 1e-45, INF, -INF, NAN])
    tensors = list(torch.cartesian_prod(values, values, values).T.contiguous())
    base = torch.full_like(tensors[0], 0.25)
    found = [request for request in elections(3, masks(False)) if BY_RANK not in request.keep]  # rows do not fit
    compare(backends, *(Case(request, tensors, base) for request in found))
