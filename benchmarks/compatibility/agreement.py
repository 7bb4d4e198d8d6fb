"""Whether warpmerge and a peer give the same result, case by case."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .cases import Case
from .data import Shape
from .measure import ulps
from .run import Job, Result, our_result

# Ulps of the largest operand up to which results agree: what the order of roundings makes. The methods that take angles
# or energies from sums over a whole tensor inherit their errors, which in float32 are the peer's: it sums in float32.
ORDER = 8
SUMS = 64
SUMMING = {"slerp", "nuslerp", "multislerp", "karcher", "model_stock", "sce"}
# In float64 any formula that is not the same shows, and any constant that is rounded to float32.
WIDE = 1024
PRECISIONS = ("float32", "float64")


def jobs(cases: tuple[Case, ...]) -> list[list[Job]]:
    """For each case its jobs: every shape in every precision."""
    return [
        [Job(f"agreement.{i}.{s}.{p}", case, shape, (p,)) for s, shape in enumerate(case.shapes) for p in PRECISIONS]
        for i, case in enumerate(cases)
    ]


def row(case: Case, of: list[Job], theirs: Mapping[str, Result], backend: str) -> dict[str, Any]:
    """What came out, as it is kept: `outcomes` has the shapes of each, `ulps` the largest distances."""
    errors: dict[str, str] = {}
    largest = dict.fromkeys(PRECISIONS, 0.0)
    found: dict[Shape, dict[str, str]] = {}
    for job in of:
        ours, peer, precision = our_result(job, backend), theirs[job.id], job.rounded[-1]
        outcome = _refused(ours, peer, errors)
        if not outcome:
            distance = _distance(ours, peer, list(job.inputs.values()))
            largest[precision] = max(largest[precision], distance)
            bound = WIDE if precision == "float64" else SUMS if case.method in SUMMING else ORDER
            outcome = "agrees" if distance <= bound else "differs"
        found.setdefault(job.shape, {})[precision] = outcome
    outcomes: dict[str, list[Shape]] = {}
    for shape, by_precision in found.items():
        outcomes.setdefault(_together(**by_precision), []).append(shape)
    return {
        "peer": case.peer,
        "method": case.method,
        "parameters": _plain(case.parameters),
        "here": {"method": case.ours_method or case.method, "parameters": _plain(case.ours or case.parameters)},
        "data": case.data,
        "models": case.models,
        "base": case.base,
        "outcomes": outcomes,
        "ulps": largest,
        "errors": errors,
        "expected": case.outcome,
        "reason": case.reason,
    }


def _plain(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(v) if isinstance(v, tuple) else v for name, v in parameters.items()}


def _distance(ours: Result, peer: Result, inputs: list[torch.Tensor]) -> float:
    assert isinstance(ours, torch.Tensor) and isinstance(peer, torch.Tensor)
    return ulps(ours, peer, inputs, inputs[0].dtype) if ours.shape == peer.shape else float("inf")


def _together(float32: str, float64: str) -> str:
    """The outcome of a shape from those of both precisions."""
    if "agrees" in (float32, float64) and "differs" in (float32, float64):
        return f"differs in {'float32' if float32 == 'differs' else 'float64'} only"
    return float32 if float32 == float64 else f"{float32} / {float64}"


def _refused(ours: Result, peer: Result, errors: dict[str, str]) -> str:
    refused = [(who, found) for who, found in (("warpmerge", ours), ("peer", peer)) if isinstance(found, str)]
    for who, found in refused:
        errors.setdefault(who, str(found))
    return "both refuse" if len(refused) == 2 else f"{refused[0][0]} refuses" if refused else ""


def unexpected(row: Mapping[str, Any]) -> list[str]:
    """Outcomes that the case does not say."""
    expected = ("agrees", "both refuse", row["expected"])
    return [outcome for outcome in row["outcomes"] if outcome.partition(" in float")[0] not in expected]
