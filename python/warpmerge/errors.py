"""Errors that a user can act on. Each message names the file, tensor, model or parameter, and says what to do."""

from __future__ import annotations

import contextlib
import difflib
import errno
import reprlib
from collections.abc import Iterable, Iterator

LONGEST = 4000  # characters of a message; a header can hold names of megabytes


class MergeError(Exception):
    """The base class of every error that warpmerge raises on purpose.

    Attributes:
        exit_status: int, the exit status of the command line after this error.
    """

    exit_status = 1

    def __str__(self) -> str:
        """The messages, a line each. Names in them come from strangers: they steer no terminal and do not fill it."""
        return "\n".join(_cut(printable(str(message))) for message in self.args)


class UsageError(MergeError, ValueError):
    """The recipe, a parameter or the call is wrong. Nothing was read or written. Exit status 2."""

    exit_status = 2


RecipeError = UsageError  # the former name of the same class


class CheckpointError(MergeError, ValueError):
    """A model's files are missing or damaged, or do not fit the other models. Exit status 1."""


def unreadable(code: int | None, reason: object, path: object) -> CheckpointError:
    """The error that a user sees after a failed read. A `code` of ESTALE: the file is not the one it was."""
    if code == errno.ESTALE:
        return CheckpointError(f"{path} changed while it was being read; run the merge again.")
    return CheckpointError(f"cannot read {path}: {reason}.")


class OutputError(MergeError, OSError):
    """The output directory cannot be used, or the disk is full. Exit status 1."""


class DeviceError(MergeError, RuntimeError):
    """The device cannot be used, or has too little memory. Exit status 1."""


def printable(text: str) -> str:
    """Text for a terminal or a page: what shows nothing, starts a line or turns the direction of text is escaped.

    Control characters, line breaks, bidirectional marks and halves of surrogate pairs become text such as `\\x1b`.
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} [...] {text[-LONGEST // 2 :]}"


@contextlib.contextmanager
def enough_memory() -> Iterator[None]:
    """What a process is told that may have no more memory, or no more threads, becomes a DeviceError."""
    try:
        yield
    except MemoryError:
        raise DeviceError("too little memory; use fewer threads, or a smaller `memory`.") from None
    except BlockingIOError:  # of native code, EAGAIN
        raise DeviceError(NO_THREAD) from None
    except RuntimeError as error:
        if "new thread" not in str(error):
            raise
        raise DeviceError(NO_THREAD) from None


NO_THREAD = "the system lets this process have no more threads or no memory for them; use fewer threads."


def close_matches(name: object, candidates: Iterable[object]) -> str:
    """Text for a message: `"; did you mean 'a' or 'b'?"`, or `""` if no candidate is similar."""
    found = difflib.get_close_matches(str(name)[:200], [str(c) for c in candidates], n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(repr(f) for f in found)}?" if found else ""


class _Short(reprlib.Repr):
    def repr_instance(self, x: object, level: int) -> str:
        """An array is named by its type: its values are long, and to print a tensor without memory ends the process."""
        return f"a {type(x).__name__}" if hasattr(type(x), "__array__") else super().repr_instance(x, level)

    def repr_int(self, x: int, level: int) -> str:
        try:
            return super().repr_int(x, level)
        except ValueError:  # Python writes no integer of more than 4300 digits
            return f"an integer of {x.bit_length()} bits"


_short = _Short()
_short.maxlevel, _short.maxlist, _short.maxtuple, _short.maxdict = 2, 4, 4, 4
_short.maxstring, _short.maxlong, _short.maxother = 100, 60, 60


def shown(value: object) -> str:
    """Text for a message: the repr of a value, shortened. A recipe or a header may hold a value of any size."""
    return _short.repr(value)
