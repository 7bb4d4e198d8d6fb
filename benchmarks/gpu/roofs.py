"""How fast device memory can be copied and read here: what everything else is compared with."""

from __future__ import annotations

import torch

from ..figures import rates
from .harness import Bench, CopyRoof


def run(bench: Bench) -> None:
    roof = CopyRoof(bench)
    for way, seconds in roof.seconds(bench.sizes.repetitions).items():
        bench.row("gpu roof", f"copy: {way}", seconds, bytes=roof.nbytes, **rates(roof.nbytes, seconds))
    nbytes = bench.sizes.copy_bytes
    for dtype in (torch.float32, torch.bfloat16):
        data = torch.ones(nbytes // dtype.itemsize, dtype=dtype, device=bench.device)
        name = str(dtype).removeprefix("torch.")
        for way, read in {"sum": data.sum, "amax": data.amax}.items():
            seconds = bench.clock.queued(read, bench.sizes.repetitions)
            bench.row("gpu roof", f"read: torch.{way} of {name}", seconds, bytes=nbytes, **rates(nbytes, seconds))
