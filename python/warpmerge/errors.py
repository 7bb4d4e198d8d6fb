"""Errors that a user can act on. Each text names the file, tensor, model or parameter, and what to do."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable


class MergeError(Exception):
    """Base of every error that warpmerge raises on purpose. `exit_status` is what the command line returns."""

    exit_status = 1


class UsageError(MergeError, ValueError):
    """The recipe, a parameter or the call is wrong. Nothing was read or written."""

    exit_status = 2


RecipeError = UsageError  # the name for what a recipe says; one class, so that either name catches both


class CheckpointError(MergeError, ValueError):
    """A model's files are missing, damaged or do not fit the other models."""


class OutputError(MergeError, OSError):
    """The output directory cannot be used."""


class DeviceError(MergeError, RuntimeError):
    """The device cannot be used, or has too little memory."""


def close_matches(name: object, candidates: Iterable[object]) -> str:
    """`"; did you mean 'a' or 'b'?"`, or nothing if no candidate is near."""
    found = difflib.get_close_matches(str(name)[:200], [str(c) for c in candidates], n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(repr(f) for f in found)}?" if found else ""


_short = reprlib.Repr()
_short.maxlevel, _short.maxlist, _short.maxtuple, _short.maxdict = 2, 4, 4, 4
_short.maxstring, _short.maxlong, _short.maxother = 100, 60, 60


def shown(value: object) -> str:
    """A value for a message: its repr, shortened, whatever the size of what a recipe or a header holds."""
    return _short.repr(value)
