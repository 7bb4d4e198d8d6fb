"""Backends: who carries out measurements and combinations. One file each, chosen here.

A backend is a class with `launch(work) -> Ticket`, `cancel()` and `close()`; a ticket has `wait() -> list[Outcome]` in
the order of the work. An explicit choice that is not available is an error; the automatic one takes the best that is.
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


# Best first: `auto` takes the first that is available, except the reference.
BACKENDS = (
    BackendInfo("cpu", "compiled kernels, all cores", ("cpu",), "cpu", _cpu_reason),
    BackendInfo("torch", "plain PyTorch, the readable reference; slow", ("cpu",), "torch", _torch_reason),
)


def choose(name: str | None = "auto") -> BackendInfo:
    """The backend of this name. `auto` means $WARPMERGE_BACKEND, else the best available one."""
    if name in (None, "auto"):
        name = os.environ.get("WARPMERGE_BACKEND") or "auto"
    if name == "auto":
        if os.environ.get("WARPMERGE_ISA") and BACKENDS[0].reason:
            raise RecipeError(f"backend 'cpu' is not available: {BACKENDS[0].reason}.")
        for info in BACKENDS:
            if info.available:
                return info
        raise RecipeError(f"no backend is available: {'; '.join(f'{b.name}: {b.reason}' for b in BACKENDS)}.")
    for info in BACKENDS:
        if info.name == name:
            if info.reason:
                raise RecipeError(f"backend '{name}' is not available: {info.reason}.")
            return info
    names = [b.name for b in BACKENDS]
    if name in ("cuda", "triton"):
        raise RecipeError(f"backend '{name}' is not part of this version; use one of {', '.join(names)}.")
    raise RecipeError(f"unknown backend {name!r}{close_matches(name, names) or '.'} Known: {', '.join(names)}.")


def create(info: BackendInfo, **options: Any) -> Any:
    """An instance. Options: `threads`, `tile` (elements), both None for the default."""
    return importlib.import_module(f".{info.module}", __name__).create(**options)


make_callable(__name__, lambda: BACKENDS)
