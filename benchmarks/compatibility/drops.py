"""Methods that drop at random: how much is kept, where, and by what the rest is multiplied."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .cases import Case
from .run import Job, Result, our_result

SHAPE = (600, 500)  # five standard deviations of a kept share are 0.005 at most
PARTS = 10


def cases() -> list[Case]:
    made = []
    for method in ("dare_linear", "dare_ties"):
        for density in (0.1, 0.5, 0.9):
            for rescale in (True, False) if method == "dare_linear" and density == 0.5 else (True,):
                given = {"weight": (1.0,), "density": density, "rescale": rescale}
                made.append(Case(method, given, models=1))
    for method in ("della_linear", "della"):
        for density, epsilon, rescale in ((0.5, 0.15, True), (0.3, 0.25, True), (0.5, 0.15, False)):
            given = {"weight": (1.0,), "density": density, "epsilon": epsilon, "rescale": rescale}
            made.append(Case(method, given, models=1))
    for method in ("dare_linear", "dare_ties"):
        given = {"weight": (1.0,), "density": 0.5}
        made.append(Case(method, given, models=1, peer="PEFT", ours={**given, "semantics": "peft"}))
    return made


def jobs() -> list[Job]:
    return [Job(f"drops.{i}", case, SHAPE) for i, case in enumerate(cases())]


def row(job: Job, theirs: Mapping[str, Result], backend: str) -> dict[str, Any]:
    density, epsilon = job.case.parameters["density"], job.case.parameters.get("epsilon", 0.0)
    edge = epsilon * (PARTS - 1) / PARTS  # the mean of a tenth of ranks is not its end
    return {
        "peer": job.case.peer,
        "method": job.case.method,
        "parameters": {k: v for k, v in job.case.parameters.items() if k != "weight"},
        "expected": {"kept": density, "least": density - edge, "largest": density + edge},
        "five_sigma": 5 * (density * (1 - density) / (SHAPE[0] * SHAPE[1])) ** 0.5,
        "warpmerge": _kept(our_result(job, backend), job),
        "theirs": _kept(theirs[job.id], job),
    }


def _kept(result: Result, job: Job) -> dict[str, float] | str:
    """kept: share of the delta. least, largest: of the tenth of each row with the least and the largest changes. norm:
    the sum of magnitudes against that of the delta."""
    if isinstance(result, str):
        return result
    base, model = (t.double() for t in job.inputs.values())
    delta, merged = model - base, result.double() - base
    kept = (merged != 0).double()
    by_size = kept.gather(1, delta.abs().argsort(dim=1))
    tenth = SHAPE[1] // PARTS
    return {
        "kept": float(kept.mean()),
        "least": float(by_size[:, :tenth].mean()),
        "largest": float(by_size[:, -tenth:].mean()),
        "norm": float(merged.abs().sum() / delta.abs().sum()),
    }
