"""warpmerge merges neural-network checkpoints: one read, one write, the same bits everywhere.

    import warpmerge as wm
    wm.merge("recipe.yml", "merged/")
    y = wm.merge_tensors([a, b, c], "ties", base=x0, weight=[0.5, 0.3, 0.2], density=0.5)

Importing this imports neither torch nor numpy; each call imports what it needs.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from . import backends, methods, requests
    from .api import MergeReport, merge
    from .backends import BackendInfo, list_backends
    from .engine.memory_merge import merge_state_dicts, merge_tensors
    from .errors import CheckpointError, DeviceError, MergeError, OutputError, RecipeError, UsageError
    from .methods import Base, TensorInfo, list_methods, method
    from .pool import Pool
    from .recipe import Recipe
    from .running import RunningEMA, RunningMean, RunningVariance
    from .verification import DiffReport, VerifyReport, diff, verify

__all__ = [
    "BackendInfo",
    "Base",
    "CheckpointError",
    "DeviceError",
    "DiffReport",
    "MergeError",
    "MergeReport",
    "OutputError",
    "Pool",
    "Recipe",
    "RecipeError",
    "RunningEMA",
    "RunningMean",
    "RunningVariance",
    "TensorInfo",
    "UsageError",
    "VerifyReport",
    "__version__",
    "backends",
    "diff",
    "list_backends",
    "list_methods",
    "merge",
    "merge_state_dicts",
    "merge_tensors",
    "method",
    "methods",
    "requests",
    "verify",
]

_ROOMS = ("backends", "methods", "requests")
_HOME = {
    **dict.fromkeys(["MergeReport", "merge"], "api"),
    **dict.fromkeys(["BackendInfo", "list_backends"], "backends"),
    **dict.fromkeys(["merge_state_dicts", "merge_tensors"], "engine.memory_merge"),
    **dict.fromkeys(["Base", "TensorInfo", "list_methods", "method"], "methods"),
    "Pool": "pool",
    "Recipe": "recipe",
    **dict.fromkeys(["RunningEMA", "RunningMean", "RunningVariance"], "running"),
    **dict.fromkeys(["DiffReport", "VerifyReport", "diff", "verify"], "verification"),
    **dict.fromkeys(
        ["CheckpointError", "DeviceError", "MergeError", "OutputError", "RecipeError", "UsageError"], "errors"
    ),
}


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f".{name}", __name__)
    if name in _HOME:
        return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
