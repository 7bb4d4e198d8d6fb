"""The long run. From the folder `tests`: `python -m torture`, or `make torture`.

It prints a table of figures for docs/reliability.md, and what was lost; then the exit status is 1. Every part draws
from the seed. A fault, a kill or a power loss that lost something is run again by the command that is printed with it.
"""

from __future__ import annotations

import argparse
import gc
import os
import signal
import sys
from dataclasses import fields
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from torture import faults, power
from torture.figures import TABLE, Figures, scratch
from torture.merges import named, workplace
from torture.parts import PARTS, Run, Size

SHOWN = 100  # losses


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m torture", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", metavar="WHAT", help="a run that was lost, as it was printed")
    for size in fields(Size):
        name = f"--{size.name.replace('_', '-')}"
        parser.add_argument(name, type=int, default=size.default, help=f"default: {size.default or 'all'}")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: all")
    arguments = parser.parse_args()
    gc.freeze()  # each run collects garbage to see what it left open: not among all that was imported
    folder = scratch() / f"torture-{os.getpid()}"
    if arguments.again:
        return again(arguments.again, folder)
    size = Size(**{field.name: getattr(arguments, field.name) for field in fields(Size)})
    done = [Figures(name) for name in arguments.parts or PARTS]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        for figures in done:
            PARTS[figures.part](Run(figures, folder, arguments.seed, size))
            print(figures.row(), *figures.losses[:SHOWN], sep="\n", flush=True)
    except KeyboardInterrupt:  # the figures so far are figures
        figures.part += ", broken off"
        print(*figures.losses[:SHOWN], sep="\n")
    print("", TABLE, *(figures.row() for figures in done if figures.runs), sep="\n")
    return int(any(figures.losses for figures in done))


def again(text: str, folder: Path) -> int:
    """Runs one thing again."""
    part, scenario, rest = text.split(" | ", 2)
    figures = Figures(part)
    with workplace(named(scenario), folder) as place:
        if part == "power":
            wrong = power.story(place, power.changes_of(place, place.before), rest, figures)
        else:
            wrong = faults.disturbed(place, faults.Fault.named(rest), figures)
    print(*wrong or ["nothing is wrong"], sep="\n")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
