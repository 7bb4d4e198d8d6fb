"""What the engine asks of a backend: the attributes and methods that it reads, and their defaults."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

from .. import _core

if TYPE_CHECKING:
    from ..tasks import Outcome, TensorTask, Work


class Ticket(Protocol):
    """Work under way."""

    def wait(self) -> list[Outcome]:
        """Outcomes in the order of the work. Raises OSError if a file could not be read or written."""
        ...


class Backend(Protocol):
    """Carries out requests. A class that inherits from it takes over the defaults."""

    # Input bytes of a batch: enough to hide the host's work per batch (about 0.2 ms), little enough that a second pass
    # finds part of it in the last-level cache.
    batch_bytes: int = 32 << 20
    batch_inputs: int = 768  # tensors of a batch, inputs counted
    in_flight: int = 3  # batches

    def launch(self, work: list[Work]) -> Ticket:
        """Starts one request for each task."""
        ...

    def release(self, tasks: Sequence[TensorTask]) -> None:
        """Drops what is held of tasks that were measured only."""
        return

    def cancel(self) -> None:
        """Drops what has not started and waits for what has. After an interrupt it can be called again."""
        ...

    def guard(self) -> AbstractContextManager[Any]:
        """Work that a block starts has ended when the block is left, whatever exception or signal ends it."""
        guarding: AbstractContextManager[Any] = _core.Guard(self.cancel)
        return guarding

    def close(self) -> None:
        """Ends all work and frees what the backend holds."""
        ...
