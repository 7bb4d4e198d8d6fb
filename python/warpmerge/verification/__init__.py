"""Checks a finished merge against its manifest and against the reference, and two checkpoints against each other."""

from .differences import DiffReport, TensorDiff, Unlike, diff
from .outputs import Checked, VerifyReport, verify

__all__ = ["Checked", "DiffReport", "TensorDiff", "Unlike", "VerifyReport", "diff", "verify"]
