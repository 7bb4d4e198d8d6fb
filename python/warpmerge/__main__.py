"""The command `warpmerge`, and `python -m warpmerge`."""

from __future__ import annotations

import sys

from .signals import Interrupts


def main() -> None:
    """Runs the command line and exits."""
    interrupts = Interrupts()
    from .cli import INTERRUPTED, run  # takes a while

    with interrupts:
        status = run()
    sys.exit(interrupts.status if status == INTERRUPTED else status)


if __name__ == "__main__":
    main()
