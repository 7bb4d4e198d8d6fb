"""Statistics over a stream of checkpoints, in constant memory."""

from .statistics import RunningEMA, RunningMean, RunningVariance

__all__ = ["RunningEMA", "RunningMean", "RunningVariance"]
