"""How far from the exact result bfloat16 models come out: here, in mergekit, and in mergekit told to use float32."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .cases import Case, V, W
from .measure import operand_ulp, ulps
from .run import Job, Result, our_result

SHAPE = (256, 513)

CASES = (
    Case("linear", {"weight": V}, base=False),
    Case("slerp", {"t": 0.3}, models=1, data="wide"),
    Case("nuslerp", {"weight": (0.6, 0.4)}, models=2),
    Case("multislerp", {"weight": V}),
    Case("karcher", base=False, data="wide"),
    Case("model_stock"),
    Case("task_arithmetic", {"weight": V}),
    Case("ties", {"weight": W}),
    Case("ties", {"weight": W, "density": 0.5}),
    Case("breadcrumbs", {"weight": W, "density": 0.9}),
    Case("breadcrumbs_ties", {"weight": W, "density": 0.9}),
    Case("sce"),
    Case("sce", {"select_topk": 0.5}),
    Case("nearswap", {"t": 0.01}, models=1),
    Case("arcee_fusion", models=1),
    Case("ram"),
    Case("ramplus_tl"),
)
# As the peer is, and with its inputs widened first.
MODES = {"default": "", "float32": "float32"}


def jobs() -> list[dict[str, Job]]:
    """For each case: the merge in bfloat16 by mode, the same numbers in float64, and what is returned if not asked."""
    return [
        {
            mode: Job(f"accuracy.{i}.{mode}", case, SHAPE, ("bfloat16",), dtype, "bfloat16")
            for mode, dtype in MODES.items()
        }
        | {"exact": Job(f"accuracy.{i}.exact", case, SHAPE, ("bfloat16", "float64"))}
        | {"unasked": Job(f"accuracy.{i}.unasked", case, SHAPE, ("bfloat16",))}
        for i, case in enumerate(CASES)
    ]


def row(of: Mapping[str, Job], theirs: Mapping[str, Result], backend: str) -> dict[str, Any]:
    """Errors against warpmerge's result in float64, and how far the peer's is from that."""
    case, inputs = of["exact"].case, list(of["exact"].inputs.values())
    truth = our_result(of["exact"], backend)
    made = {"warpmerge": our_result(of["default"], backend), **{mode: theirs[of[mode].id] for mode in MODES}}
    exact = theirs[of["exact"].id]
    unasked = {"warpmerge": our_result(of["unasked"], backend), "mergekit": theirs[of["unasked"].id]}
    both = isinstance(truth, torch.Tensor) and isinstance(exact, torch.Tensor)
    return {
        "method": case.method,
        "parameters": {k: list(v) if isinstance(v, tuple) else v for k, v in case.parameters.items()},
        "errors": {who: _error(result, truth, inputs) for who, result in made.items()},
        "returns": {who: str(t.dtype)[6:] for who, t in unasked.items() if isinstance(t, torch.Tensor)},
        "float64": ulps(truth, exact, inputs, torch.float64) if both else None,
    }


def _error(result: Result, truth: Result, inputs: list[torch.Tensor]) -> dict[str, float] | None:
    """largest: in bfloat16 ulps of the largest operand. wrong: share of elements that are not the rounded truth."""
    if isinstance(result, str) or isinstance(truth, str):
        return None
    distance = (result.double() - truth).abs() / operand_ulp([*inputs, truth], torch.bfloat16)
    wrong = result.double() != truth.to(torch.bfloat16).double()
    return {"largest": float(distance.amax()), "wrong": float(wrong.double().mean())}
