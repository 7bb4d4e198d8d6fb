"""How much is measured: on a GPU, and in the smoke test."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """How much is measured. Bytes are several times a cache of 60 MB, so that a repetition finds nothing in it."""

    kernel_bytes: int = 1 << 30  # that a kernel reads
    kernel_cases: tuple[tuple[str, int], ...] = (  # dtype and models; what matters most comes first
        ("bf16", 3),
        ("fp32", 3),
        ("bf16", 2),
        ("bf16", 8),
        ("fp32", 2),
        ("fp32", 8),
    )
    ranked: int = 1 << 26  # elements
    checked: int = 300_001  # elements compared with the CPU's result before timing: whole blocks, and a rest
    method_count: int = 256 << 20  # elements of each tensor of a whole method
    shape: str = "qwen2.5-0.5b"
    tensors: int | None = None  # of it, the first ones; None: all
    sweep: int = 8  # outputs
    copy_bytes: int = 1 << 30  # of the roofs
    draws: int = 1 << 30  # random numbers
    repetitions: int = 20
    rounds: int = 5  # of what takes longer than a tenth of a second
    disk_rounds: int = 3


SMOKE = Sizes(
    kernel_bytes=12_000,
    kernel_cases=(("fp32", 2),),  # the one with every kernel
    ranked=200,
    checked=1_001,
    method_count=1_003,
    shape="tiny",
    tensors=2,
    sweep=3,
    copy_bytes=1 << 16,
    draws=1 << 15,
    repetitions=1,
    rounds=1,
    disk_rounds=1,
)
