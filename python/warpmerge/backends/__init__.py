"""Backends carry out measurements and combinations. This module lists them and chooses one.

backends/protocol.py says what a backend is. If the backend that somebody asks for is not available, that is an error.
The choice `auto` takes the best one that is available.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..callable_package import make_callable
from ..errors import UsageError, close_matches, shown


@dataclass(frozen=True)
class BackendInfo:
    """A backend that warpmerge has, available on this machine or not.

    Attributes:
        name: `cuda`, `triton`, `cpu` or `torch`.
        summary: one line that describes it.
        devices: types of devices that it computes on: `cpu`, `cuda`.
        module: name of its module in `warpmerge.backends`.
        why_not: function that returns why it is not available, or None.
    """

    name: str
    summary: str
    devices: tuple[str, ...]
    module: str
    why_not: Callable[[], str | None]

    @property
    def reason(self) -> str | None:
        """Why the backend is not available on this machine; None if it is."""
        return self.why_not()

    @property
    def available(self) -> bool:
        """Whether the backend can be used on this machine."""
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
    """The backend of this name, available or not. Raises UsageError if there is none."""
    for info in BACKENDS:
        if info.name == name:
            return info
    names = [b.name for b in BACKENDS]
    raise UsageError(f"unknown backend {name!r}{close_matches(name, names) or '.'} Choose one of {', '.join(names)}.")


def gpus() -> list[str]:
    """Descriptions of the GPUs that can be used, one line each."""
    for info in BACKENDS:
        if "cuda" in info.devices and info.available:
            return importlib.import_module(f".{info.module}", __name__).devices()
    return []


def is_automatic(name: str | None) -> bool:
    """Whether neither the caller nor the environment names a backend."""
    return (name is None or (isinstance(name, str) and name == "auto")) and not os.environ.get("WARPMERGE_BACKEND")


def choose(name: str | None = "auto", device: str = "auto") -> BackendInfo:
    """Chooses an available backend.

    Args:
        name: name of a backend. None or `auto`: $WARPMERGE_BACKEND, else the best available one for the device.
        device: `auto`, `cpu`, or a GPU such as `cuda:1`.

    Raises:
        UsageError: name or device is unknown, or no such backend is available.
    """
    for what, value in (("backend", "auto" if name is None else name), ("device", device)):
        if not isinstance(value, str):
            raise UsageError(f"{what} must be a string, got {shown(value)}.")
    kind = device.partition(":")[0]
    if kind not in ("auto", "cpu", "cuda") or (kind != "cuda" and kind != device):
        raise UsageError(f"unknown device {device!r}. Choose one of auto, cpu, cuda, cuda:N, cuda:N,M or cuda:all.")
    if name in (None, "auto"):
        name = os.environ.get("WARPMERGE_BACKEND") or "auto"
    if name != "auto":
        info = find(name)
        if kind != "auto" and kind not in info.devices and not _interprets(info):
            raise UsageError(
                f"backend '{name}' computes on {info.devices[0]}, not on {device}; choose another backend or device."
            )
        if info.reason:
            raise UsageError(f"backend '{name}' is not available: {info.reason}.")
        return info
    if os.environ.get("WARPMERGE_ISA") and find("cpu").reason:
        raise UsageError(f"backend 'cpu' is not available: {find('cpu').reason}.")
    able = [b for b in BACKENDS if kind == "auto" or kind in b.devices]
    for info in able:
        if info.available and not _interprets(info):
            return info
    where = "" if kind == "auto" else f" for device '{device}'"
    reasons = "; ".join(f"backend '{b.name}': {b.reason}" for b in able)
    raise UsageError(f"no backend is available{where} ({reasons}); `warpmerge info` shows all backends.")


def computes_on_host_tensors(info: BackendInfo) -> bool:
    """Whether the backend's device memory is the host's, so that torch's CPU tensors are merged in place."""
    return _interprets(info)


def _interprets(info: BackendInfo) -> bool:
    """Whether the CPU plays the backend's GPU. `auto` never chooses such a backend."""
    return info.name == "triton" and os.environ.get("TRITON_INTERPRET") == "1"


def create(info: BackendInfo, **options: Any) -> Any:
    """Makes an instance.

    Args:
        info: the backend.
        **options: `threads`, a number; on the CPU `tile`, a number of elements; on a GPU `device`, a string, and
            `budget`, bytes of its memory. None: the default.
    """
    return importlib.import_module(f".{info.module}", __name__).create(**options)


def create_in_place(info: BackendInfo, device: Any) -> Any:
    """Makes an instance that works on tensors of a torch device in place, on torch's current stream."""
    return importlib.import_module(f".{info.module}", __name__).create_in_place(device)


def list_backends() -> tuple[BackendInfo, ...]:
    """All backends, best first, available on this machine or not.

    Returns:
        A tuple of BackendInfo. `reason` says why a backend is not available.

    Example:
        >>> [info.name for info in wm.list_backends() if info.available]
    """
    return BACKENDS


make_callable(__name__, list_backends)
