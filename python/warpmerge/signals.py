"""What signals do to a command.

While a command works, Ctrl-C, SIGTERM (a scheduler ends the job) and SIGHUP (the terminal is gone) raise
KeyboardInterrupt, so that it can keep what is finished. While Python starts and ends there is nothing to keep, and a
traceback would tell nobody anything.
"""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

_USUAL = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL}


class Interrupts:
    """From when it is made, such signals end the process without a word; in its block they raise KeyboardInterrupt;
    after the block they are ignored. One with another effect already, as SIGHUP under nohup, is left alone.

    Attributes:
        status: what a command that such a signal ended exits with.
    """

    status = 130

    def __init__(self) -> None:
        self._taken = [number for number, usual in _USUAL.items() if signal.getsignal(number) == usual]
        self._set(signal.SIG_DFL)

    def _set(self, handler: Any) -> None:
        for number in self._taken:
            signal.signal(number, handler)

    def __enter__(self) -> Interrupts:
        self._set(self._raise)
        return self

    def _raise(self, number: int, frame: FrameType | None) -> Any:
        self.status = 128 + number
        raise KeyboardInterrupt

    def __exit__(self, *_: Any) -> None:
        self._set(signal.SIG_IGN)
