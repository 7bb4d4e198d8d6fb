"""How fast device memory can be copied and read here: what everything else is compared with."""

from __future__ import annotations

import statistics

import torch

from .harness import Bench, CopyRoof


def run(bench: Bench) -> None:
    roof = CopyRoof(bench)
    for way, seconds in roof.seconds(bench.sizes.repetitions).items():
        rate = roof.nbytes / statistics.median(seconds) / 1e9
        bench.row("gpu roof", f"copy: {way}", seconds, bytes=roof.nbytes, **{"GB/s": rate})
    nbytes = bench.sizes.copy_bytes
    for dtype in (torch.float32, torch.bfloat16):
        data = torch.ones(nbytes // dtype.itemsize, dtype=dtype, device=bench.device)
        name = str(dtype).removeprefix("torch.")
        for way, read in {"sum": data.sum, "amax": data.amax}.items():
            seconds = bench.clock.queued(read, bench.sizes.repetitions)
            rate = nbytes / statistics.median(seconds) / 1e9
            bench.row("gpu roof", f"read: torch.{way} of {name}", seconds, bytes=nbytes, **{"GB/s": rate})
