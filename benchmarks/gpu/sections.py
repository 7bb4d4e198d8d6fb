"""The sections of the measurements: what each runs, for which backends, and how long it may take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

BACKENDS = ("cuda", "triton")


class Section(NamedTuple):
    name: str
    about: str
    seconds: int
    backends: tuple[str, ...]  # those that it is run for, each in turn


SECTIONS = (
    Section("roofs", "copying and reading device memory", 15, ("torch",)),
    Section("kernels", "each kernel, on operands of 1 GiB", 60, BACKENDS),
    Section("methods", "whole methods, against plain PyTorch", 40, BACKENDS),
    Section("models", "state dicts and pools of a 0.5 B model", 30, BACKENDS),
    Section("philox", "what drawing costs", 20, BACKENDS),
    Section("host", "tensors of the host's memory", 40, BACKENDS),
    Section("disk", "files in the page cache", 80, ("cuda",)),
)
NAMES = tuple(section.name for section in SECTIONS)
RESIDENT = {"kernels", "methods", "models", "philox"}  # their operands are in the device's memory


def function(name: str) -> Callable[[Any], None]:
    """What measures a section; imports it, so that a broken one breaks only itself."""
    if name == "roofs":
        from .roofs import run
    elif name == "kernels":
        from .kernels import run
    elif name == "methods":
        from .methods import run
    elif name == "models":
        from .models import run
    elif name == "philox":
        from .philox import run
    elif name == "host":
        from .regimes import host as run
    else:
        from .regimes import disk as run
    return run
