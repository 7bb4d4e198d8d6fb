"""Whole models on the device: merging state dicts, and a pool whose models are merged again and again."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
import warpmerge as wm
from warpmerge.backends.gpu.torch_runtime import TorchEvent
from warpmerge.engine.arrays import Place

from ..figures import rates
from ..operands import random_model
from ..shapes import SHAPES
from .harness import Bench, CopyRoof
from .sizes import Sizes

WEIGHTS = [0.5, 0.3, 0.2]
METHODS: dict[str, dict[str, Any]] = {
    "linear": {"weight": WEIGHTS},
    "task_arithmetic": {"weight": WEIGHTS},
    "ties": {"weight": WEIGHTS, "density": 0.5},
}
StateDict = dict[str, torch.Tensor]


def make_models(sizes: Sizes, device: torch.device, models: int = 3) -> tuple[StateDict, list[StateDict]]:
    """A base and its fine-tunes in bfloat16, as state dicts with the names and shapes of a real model."""
    specs = SHAPES[sizes.shape]().tensors()[: sizes.tensors]
    total = sum(spec.size for spec in specs)
    made = []
    for index in range(models + 1):
        flat, at, named = random_model(total, index, torch.bfloat16, device), 0, {}
        for spec in specs:
            # Each tensor has memory of its own, as those of a loaded model have.
            named[spec.name] = flat[at : at + spec.size].clone().view(spec.shape)
            at += spec.size
        made.append(named)
    return made[0], made[1:]


def run(bench: Bench) -> None:
    base, models = make_models(bench.sizes, bench.device)
    nbytes = sum(t.numel() * t.element_size() for t in base.values())
    roof = CopyRoof(bench).rate()

    def measure(what: str, call: Callable[[], Any], arrays: int) -> None:
        bench.check_time()
        bench.clock.warm_up(call)
        launches, waits = _count(bench, call)
        seconds = bench.clock.whole(call, min(bench.sizes.repetitions, 10))
        bench.row(
            "gpu model",
            what,
            seconds,
            models=len(models),
            shape=bench.sizes.shape,
            tensors=len(base),
            launches=launches,
            waits=waits,
            bytes=arrays * nbytes,
            **rates(arrays * nbytes, seconds, roof),
        )

    for method, parameters in METHODS.items():
        origin = None if method == "linear" else base
        _check(bench, method, parameters, models, origin)
        measure(
            f"merge_state_dicts, {method}",
            lambda m=method, p=parameters, b=origin: wm.merge_state_dicts(
                models, m, base=b, backend=bench.backend, **p
            ),
            len(models) + (origin is not None) + 1,
        )
    try:
        pool = wm.Pool(base, models, backend=bench.backend)
    except (AssertionError, RuntimeError, wm.MergeError) as error:  # kernels that run on the CPU, but torch has no GPU
        if bench.on_gpu:
            raise
        bench.missing("gpu model", "Pool.merge and Pool.sweep", str(error).splitlines()[0])
        return
    target = {name: torch.zeros_like(tensor) for name, tensor in base.items()}
    for method, parameters in METHODS.items():
        arrays = len(models) + (method != "linear") + 1
        measure(f"Pool.merge(into), {method}", lambda m=method, p=parameters: pool.merge(m, into=target, **p), arrays)
    rows = [[0.1 * (m + 1), 0.9 - 0.1 * m, 0.05 * m] for m in range(bench.sizes.sweep)]
    swept = pool.sweep(rows)
    alone = wm.merge_state_dicts(models, "task_arithmetic", base=base, weight=rows[-1], backend=bench.backend)
    assert all(torch.equal(swept[-1][name], alone[name]) for name in alone), "a sweep differs from single merges"
    del swept, alone
    measure(f"Pool.sweep, {len(rows)} outputs", lambda: pool.sweep(rows), len(models) + 1 + len(rows))


def _check(bench: Bench, method: str, parameters: dict[str, Any], models: list[StateDict], base: Any) -> None:
    """The smaller tensors have the CPU's bits."""
    names = [n for n, t in models[0].items() if t.numel() <= bench.sizes.checked]

    def merge(place: Callable, backend: str) -> StateDict:
        parts = [{n: place(m[n]) for n in names} for m in (*models, *([base] if base is not None else []))]
        origin = parts.pop() if base is not None else None
        return wm.merge_state_dicts(parts, method, base=origin, backend=backend, **parameters)

    got, wanted = merge(lambda t: t, bench.backend), merge(lambda t: t.cpu(), "cpu")
    for name in names:
        assert torch.equal(got[name].cpu(), wanted[name]), f"{method}: '{name}' differs from the CPU's"


# --- launches and waits ---------------------------------------------------------------------------------------------


def _count(bench: Bench, call: Callable[[], Any]) -> tuple[int | None, int | None]:
    """Kernels launched by this package, and how often the host waited for the device; None where unknown."""
    launches = _launches_of_triton if bench.backend == "triton" else _launches_of_cuda
    with _waits(bench.on_gpu) as waits, launches(bench) as launched:
        call()
    return launched(), waits() if bench.on_gpu else None


@contextlib.contextmanager
def _launches_of_cuda(bench: Bench) -> Iterator[Callable[[], int]]:
    """The native module counts them."""
    device = Place.of("cuda", torch.empty(0, device=bench.device)).backend().kernels.device
    before = device.launches
    yield lambda: device.launches - before


@contextlib.contextmanager
def _launches_of_triton(bench: Bench) -> Iterator[Callable[[], int]]:
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    count = 0
    originals = {cls: cls.run for cls in (JITFunction, InterpretedFunction)}

    def counting(run: Callable) -> Callable:
        def counted(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            return run(*arguments, **options)

        return counted

    for cls, original in originals.items():
        cls.run = counting(original)
    try:
        yield lambda: count
    finally:
        for cls, original in originals.items():
            cls.run = original


@contextlib.contextmanager
def _waits(on_gpu: bool) -> Iterator[Callable[[], int]]:
    """Waits for events, and operations of torch that wait by themselves (it warns of them if told to)."""
    count = 0
    original = TorchEvent.synchronize

    def counted(self: TorchEvent) -> None:
        nonlocal count
        count += 1
        original(self)

    TorchEvent.synchronize = counted
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if on_gpu:
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield lambda: count + sum("synchroniz" in str(w.message) for w in caught)
        finally:
            TorchEvent.synchronize = original
            if on_gpu:
                torch.cuda.set_sync_debug_mode("default")
