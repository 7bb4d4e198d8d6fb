"""Means and variances over a stream of checkpoints: one at a time, as long as it lasts, in constant memory.

    mean = wm.RunningMean()
    for path in checkpoints:
        mean.update(path)
    mean.write("average/", dtype="bfloat16")

The state is float32 (float64 where a checkpoint is), so that small steps do not vanish as they do in a mean that is
kept in 16 bits. A checkpoint's own files are never loaded whole.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import UsageError, shown
from ..expr.expression import delta, equal, where
from ..expr.formula import Formula
from ..requests import Combine, Map, WeightedSum
from .state import Running, Tensors


class RunningMean(Running):
    """The mean of all checkpoints so far: m + (x - m) / t for the t-th checkpoint x.

    If an element is the same in all checkpoints, the mean has its bits.

    Args:
        file: a safetensors file that holds the state instead of memory. If it exists, the object goes on from it.
        backend: `auto`, `cuda`, `triton`, `cpu` or `torch`.

    Raises:
        UsageError: the file was made with other options.
        CheckpointError: the file is damaged, or holds another kind of state.

    Example:
        >>> mean = wm.RunningMean()
        >>> for path in checkpoints:
        ...     mean.update(path)
        >>> mean.write("average/", dtype="bfloat16")
    """

    def step(self) -> Combine:
        return WeightedSum((1 / (self.count + 1),), on_deltas=True)


class RunningEMA(Running):
    """The exponential moving average e + (1 - decay) (x - e). It starts as the first checkpoint."""

    def __init__(self, decay: float, *, file: str | Path | None = None, backend: str = "auto") -> None:
        """Makes an average without checkpoints, or goes on from a file.

        Args:
            decay: the share of the average that stays at each step, from 0 to 1.
            file: a safetensors file that holds the state instead of memory. If it exists, the object goes on from it.
            backend: `auto`, `cuda`, `triton`, `cpu` or `torch`.

        Raises:
            UsageError: `decay` is no number from 0 to 1, or the file was made with another one.
            CheckpointError: the file is damaged, or holds another kind of state.
        """
        if isinstance(decay, bool) or not isinstance(decay, (int, float)) or not 0 <= decay <= 1:
            raise UsageError(f"decay must be a number from 0 to 1, not {shown(decay)}.")
        self.decay = float(decay)
        super().__init__(file=file, backend=backend)

    def options(self) -> dict[str, float]:
        return {"decay": self.decay}

    def step(self) -> Combine:
        return WeightedSum((1 - self.decay,), on_deltas=True)


class RunningVariance(Running):
    """The mean and the unbiased variance of each element over all checkpoints so far, by Welford's update.

    With the mean m, the sum of squares s and the t-th checkpoint x: m' = m + (x - m) / t, s' = s + (x - m) (x - m').
    The mean has the bits of RunningMean's.
    """

    parts = ("mean", "squares")

    def step(self) -> Combine:
        mean, squares, x = (delta(k) for k in range(3))
        change = (x - mean) * (1 / (self.count + 1))
        following = where(equal(change, 0), mean, mean + change)
        return Map(Formula((following, squares + (x - mean) * (x - following))), on_deltas=False, nan_of=None)

    def variance(self, *, dtype: Any = None) -> Tensors:
        """The unbiased variance of each element, as a new state dict.

        Args:
            dtype: floating-point dtype of the result. Default: the state's.

        Raises:
            UsageError: there were fewer than two checkpoints.
        """
        self.need(2)
        return self.export("squares", 1 / (self.count - 1), dtype)

    def write_variance(self, path: str | Path, *, dtype: Any = None) -> None:
        """Writes the unbiased variance of each element, as `write` does with the mean.

        Raises:
            UsageError: there were fewer than two checkpoints.
            OutputError: the file or directory cannot be written.
        """
        self.need(2)
        self.write_part("squares", 1 / (self.count - 1), path, dtype, None)
