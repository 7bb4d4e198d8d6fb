"""Whole methods on tensors of the device, as `merge_tensors` runs them, beside the same formulas in plain PyTorch."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import warpmerge as wm

from ..figures import rates, spread
from ..operands import random_model
from . import formulas
from .harness import Bench, Call, CopyRoof

WEIGHTS = (0.5, 0.3, 0.2)
DENSITY = 0.5
T = 0.3
CLOSE = 2.0**-7  # relative: outputs are bfloat16, and PyTorch rounds more often
SLOW = 3  # repetitions of a formula that takes long


@dataclass(frozen=True)
class Method:
    """`plain`: its formula in PyTorch; `passes`: times that the inputs are read."""

    name: str
    parameters: dict[str, Any]
    plain: Callable[..., torch.Tensor]
    models: int = 3
    base: bool = True
    passes: int = 1
    random: bool = False


SPARSE = {"weight": list(WEIGHTS), "density": DENSITY}
METHODS = (
    Method("linear", {"weight": list(WEIGHTS)}, lambda m, b: formulas.linear(m, WEIGHTS), base=False),
    Method("task_arithmetic", {"weight": list(WEIGHTS)}, lambda m, b: formulas.task_arithmetic(m, b, WEIGHTS)),
    Method("ties", SPARSE, lambda m, b, keep=formulas.by_sort: formulas.ties(m, b, WEIGHTS, DENSITY, keep), passes=2),
    Method(
        "dare_linear",
        SPARSE,
        lambda m, b: formulas.dare(m, b, WEIGHTS, DENSITY, elect=False),
        passes=2,
        random=True,
    ),
    Method("dare_ties", SPARSE, lambda m, b: formulas.dare(m, b, WEIGHTS, DENSITY, elect=True), passes=2, random=True),
    Method("slerp", {"t": T}, lambda m, b: formulas.slerp(m, T), models=2, base=False, passes=2),
)


def run(bench: Bench) -> None:
    roof = CopyRoof(bench)
    count = bench.sizes.method_count
    if bench.on_gpu:  # the formulas hold a dozen float32 tensors
        count = min(count, torch.cuda.mem_get_info(bench.device)[0] // 80)
    base, *models = (random_model(count, k, torch.bfloat16, bench.device) for k in range(4))
    for method in METHODS:
        bench.check_time()
        _measure(bench, roof, method, models[: method.models], base if method.base else None)


def _measure(
    bench: Bench, roof: CopyRoof, method: Method, models: list[torch.Tensor], base: torch.Tensor | None
) -> None:
    def merge() -> torch.Tensor:
        return wm.merge_tensors(models, method.name, base=base, backend=bench.backend, **method.parameters)

    _check(bench, method, models, base)
    seconds = bench.clock.whole(merge, bench.sizes.repetitions)
    plain, how = _plain(bench, method, models, base)
    argsort = None
    if method.name == "ties":
        bench.check_time()
        argsort = bench.clock.whole(lambda: method.plain(models, base, formulas.by_argsort), _few(bench))
    nbytes = (len(models) + method.base + 1) * models[0].numel() * models[0].element_size()
    median = statistics.median(seconds)
    bench.row(
        "gpu method",
        method.name,
        seconds,
        dtype="bf16",
        models=len(models),
        elements=models[0].numel(),
        passes=method.passes,
        bytes=nbytes,
        plain={**spread(plain), "how": how, "ratio": statistics.median(plain) / median},
        argsort=argsort and {**spread(argsort), "ratio": statistics.median(argsort) / median},
        reach=">= 10" if method.name == "ties" else None,
        **rates(nbytes, seconds, roof.rate()),
    )


def _few(bench: Bench) -> int:
    return min(SLOW, bench.sizes.repetitions)


def _plain(
    bench: Bench, method: Method, models: list[torch.Tensor], base: torch.Tensor | None
) -> tuple[list[float], str | None]:
    """Seconds of the formula; of TIES with the fastest of the ways to find the threshold."""
    if method.name != "ties":
        return bench.clock.whole(lambda: method.plain(models, base), bench.sizes.rounds), None
    found: dict[str, list[float]] = {}
    for name, keep in formulas.SEARCHES.items():
        bench.check_time()
        found[name] = bench.clock.whole(lambda keep=keep: method.plain(models, base, keep), _few(bench))
    how = min(found, key=lambda name: statistics.median(found[name]))
    return found[how], how


def _check(bench: Bench, method: Method, models: list[torch.Tensor], base: torch.Tensor | None) -> None:
    """On the first elements: the CPU's bits, and near what the formula says where nothing is drawn at random."""
    part: list[Any] = [t[: bench.sizes.checked] for t in (*models, *([base] if base is not None else []))]
    origin = part.pop() if base is not None else None

    def merge(place: Call, backend: str, **more: Any) -> torch.Tensor:
        tensors, start = [place(t) for t in part], None if origin is None else place(origin)
        return wm.merge_tensors(tensors, method.name, base=start, backend=backend, **method.parameters, **more)

    got = merge(lambda t: t, bench.backend).cpu()
    wanted = merge(lambda t: t.cpu(), "cpu")
    assert torch.equal(got.view(torch.int16), wanted.view(torch.int16)), f"{method.name}: not the CPU's bits"
    if not method.random:
        more = {"ties": "keep_all"} if method.name == "ties" else {}
        apart = formulas.difference(method.plain(part, origin), merge(lambda t: t, bench.backend, **more))
        assert apart <= CLOSE, f"{method.name}: the formula in PyTorch differs by {apart:.1e}"
