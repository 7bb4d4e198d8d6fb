"""Errors that a user can act on. Each text names the file, tensor, model or parameter, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MergeError(Exception):
    """Base of every error that warpmerge raises on purpose. `exit_status` is what the command line returns."""

    exit_status = 1


class RecipeError(MergeError):
    """The recipe, a parameter or the call is wrong: nothing was read or written."""

    exit_status = 2


class CheckpointError(MergeError):
    """A model's files are missing, damaged or do not fit the other models."""


class OutputError(MergeError):
    """The output directory cannot be used."""


def close_matches(name: str, candidates: Iterable[str]) -> str:
    """`"; did you mean 'a' or 'b'?"`, or nothing if no candidate is near."""
    found = difflib.get_close_matches(str(name), [str(c) for c in candidates], n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(repr(f) for f in found)}?" if found else ""
