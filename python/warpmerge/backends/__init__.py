"""Backends: who carries out measurements and combinations. One file each, chosen here.

A backend is a class with `launch(work) -> Ticket`, `cancel()` and `close()`; a ticket has `wait() -> list[Outcome]` in
the order of the work. It may say how the engine should divide the work: `batch_bytes`, `batch_inputs`, `in_flight`. An
explicit choice that is not available is an error; the automatic one takes the best that is.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..callable_package import make_callable
from ..errors import RecipeError, close_matches


@dataclass(frozen=True)
class BackendInfo:
    """`reason` says why the backend is not available, None if it is. `devices`: device types it computes on."""

    name: str
    summary: str
    devices: tuple[str, ...]
    module: str
    why_not: Callable[[], str | None]

    @property
    def reason(self) -> str | None:
        return self.why_not()

    @property
    def available(self) -> bool:
        return self.reason is None


def _cpu_reason() -> str | None:
    try:
        from .. import _core
    except ImportError as error:
        return f"the native module cannot be loaded ({error}); reinstall with pip install ."
    forced = os.environ.get("WARPMERGE_ISA", "")
    if forced and forced not in _core.isas():
        return f"WARPMERGE_ISA={forced} is not one of {', '.join(_core.isas())}"
    return None


def _torch_reason() -> str | None:
    found = importlib.util.find_spec("torch") is not None
    return None if found else "torch is not installed (pip install torch)"


def _cuda_reason() -> str | None:
    from .gpu import cuda

    return cuda.reason()


def _triton_reason() -> str | None:
    from .gpu import triton

    return triton.reason()


# Best first: `auto` takes the first that is available, except the reference and an interpreter.
BACKENDS = (
    BackendInfo("cuda", "compiled CUDA kernels", ("cuda",), "gpu.cuda", _cuda_reason),
    BackendInfo("triton", "Triton kernels, compiled when they are first used", ("cuda",), "gpu.triton", _triton_reason),
    BackendInfo("cpu", "compiled kernels, all cores", ("cpu",), "cpu", _cpu_reason),
    BackendInfo("torch", "plain PyTorch, the readable reference; slow", ("cpu",), "reference", _torch_reason),
)


def find(name: str) -> BackendInfo:
    for info in BACKENDS:
        if info.name == name:
            return info
    names = [b.name for b in BACKENDS]
    raise RecipeError(f"unknown backend {name!r}{close_matches(name, names) or '.'} Known: {', '.join(names)}.")


def gpus() -> list[str]:
    """A line for each GPU that can be used."""
    for info in BACKENDS:
        if "cuda" in info.devices and info.available:
            return importlib.import_module(f".{info.module}", __name__).devices()
    return []


def choose(name: str | None = "auto", device: str = "auto") -> BackendInfo:
    """The backend of this name, computing on `device` (`auto`, `cpu`, or a GPU such as `cuda:1`).

    `auto` means $WARPMERGE_BACKEND, else the best available one for the device.
    """
    kind = device.partition(":")[0]
    if kind not in ("auto", "cpu", "cuda") or (kind != "cuda" and kind != device):
        raise RecipeError(f"unknown device {device!r}. Choose auto, cpu, cuda, cuda:N, cuda:N,M or cuda:all.")
    if name in (None, "auto"):
        name = os.environ.get("WARPMERGE_BACKEND") or "auto"
    if name != "auto":
        info = find(name)
        if kind != "auto" and kind not in info.devices and not _interprets(info):
            raise RecipeError(f"backend '{name}' computes on {info.devices[0]}, not on {device}.")
        if info.reason:
            raise RecipeError(f"backend '{name}' is not available: {info.reason}.")
        return info
    if os.environ.get("WARPMERGE_ISA") and find("cpu").reason:
        raise RecipeError(f"backend 'cpu' is not available: {find('cpu').reason}.")
    able = [b for b in BACKENDS if kind == "auto" or kind in b.devices]
    for info in able:
        if info.available and not _interprets(info):
            return info
    where = "" if kind == "auto" else f" for device '{device}'"
    raise RecipeError(f"no backend is available{where}: {'; '.join(f'{b.name}: {b.reason}' for b in able)}.")


def computes_on_host_tensors(info: BackendInfo) -> bool:
    """Whether the backend's device memory is the host's, so that torch's CPU tensors are merged in place."""
    return _interprets(info)


def _interprets(info: BackendInfo) -> bool:
    """Whether the backend's GPU is played by the CPU: only for those who ask for it by name."""
    return info.name == "triton" and os.environ.get("TRITON_INTERPRET") == "1"


def create(info: BackendInfo, **options: Any) -> Any:
    """An instance. Options, None for the default: `threads`; `tile` (elements) of those on the CPU; `device` and
    `budget` (bytes of its memory) of those on a GPU.
    """
    return importlib.import_module(f".{info.module}", __name__).create(**options)


def create_in_place(info: BackendInfo, device: Any) -> Any:
    """An instance for tensors of a torch device: it works on them where they are, on torch's current stream."""
    return importlib.import_module(f".{info.module}", __name__).create_in_place(device)


def list_backends() -> tuple[BackendInfo, ...]:
    """Every backend, the best first: its name, the devices it computes on, and why it is not available here."""
    return BACKENDS


make_callable(__name__, list_backends)
