"""`warpmerge demo`: trains a small model and three fine-tunes of it, merges them, and compares their losses.

The demo needs no download. Its text comes with every Python installation. Its Llama is small enough to train on one
core in half a minute. It writes Hugging Face directories, merges them with mergekit's recipes, and measures losses on
held-out text. Nothing here imports torch before `run` is called.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import MergeError
from .result import DemoResult

__all__ = ["DemoResult", "run"]

SECONDS = 34.0  # of the full training: 850 steps of 40 ms on one core of an AMD EPYC with AVX-512


def run(directory: Path | None = None, *, seconds: float = SECONDS, echo: Callable[[str], Any] = print) -> DemoResult:
    """Trains, merges and evaluates, and prints a report.

    Args:
        directory: a new or an empty directory, or that of an earlier demo, whose models are used again. Default:
            `./warpmerge-demo`.
        seconds: scales the number of training steps. By the speed of one machine this is the training time, so that the
            models do not depend on the speed of this machine. With much less than the default, merges may be bad.
        echo: called with each part of the report.

    Returns:
        A DemoResult.

    Raises:
        MergeError: torch or safetensors is not installed, or the directory is not the demo's.
    """
    try:
        import safetensors.torch  # noqa: F401 - imports torch, too
    except ImportError as error:
        raise MergeError(f"the demo trains models; run pip install torch safetensors ({error}).") from error
    from .story import tell

    return tell(Path(directory or "warpmerge-demo"), seconds, echo)
