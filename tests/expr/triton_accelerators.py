"""The Triton backend's accelerators, its kernels interpreted, against the expressions that define them, bit for bit.

A program of its own, because TRITON_INTERPRET must be set before triton is imported: see test_accelerators.py.
Prints one line per failure, and last the number of cases.
"""

import contextlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import conftest  # noqa: F401 (makes the helpers importable)
from accelerators import NUMBER, compare_many, compare_one, compare_votes
from device_budget import budget_for
from triton_helpers import case, cases, run_cases
from warpmerge.backends.gpu import triton


def on_device(tasks):
    return contextlib.closing(triton.create(buffer_bytes=1 << 16))


def in_tiles(tasks):
    return contextlib.closing(triton.create(buffer_bytes=1 << 16, budget=budget_for(tasks)))


# Masks by rank are left to the expression, and the interpreter takes a millisecond to rank an element.
@cases("full chunks", number=range(NUMBER))
def _(number):
    compare_one([in_tiles], number, by_rank=False)


@case
def many_at_once():
    compare_many([on_device], "bf16", [3], by_rank=False)


@case
def votes():
    compare_votes([on_device])


if __name__ == "__main__":
    run_cases()
