"""`warpmerge demo`: trains a small model and three fine-tunes of it, merges them, and checks what came out.

Everything is real and made on the spot: text that every Python installation carries, a Llama small enough to
train on one core in half a minute, Hugging Face directories, mergekit recipes, and losses on held-out text.
Nothing here imports torch before `run` is called.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import MergeError
from .result import DemoResult

__all__ = ["DemoResult", "run"]

SECONDS = 34.0  # the full training, 850 steps of 40 ms, on one core of an AMD EPYC with AVX-512


def run(directory: Path | None = None, *, seconds: float = SECONDS, echo: Callable[[str], Any] = print) -> DemoResult:
    """Trains, merges and evaluates in `directory` (default `./warpmerge-demo`), and says how it went.

    `seconds` is the training time asked for. It only scales the number of steps, by the figure of one
    machine, so that the models do not depend on how fast this one is. With much less than the default no
    merge need be good. Models that an earlier run left are used again.
    """
    try:
        import safetensors.torch  # noqa: F401 - imports torch, too
    except ImportError as error:
        raise MergeError(f"the demo trains models: pip install torch safetensors ({error})") from error
    from .story import tell

    return tell(Path(directory or "warpmerge-demo"), seconds, echo)
