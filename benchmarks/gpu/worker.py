"""One process that measures: `python -m benchmarks.gpu.worker ROWS.jsonl [--smoke] SECTION:BACKEND:SECONDS...`

Appends a line for each row as soon as it is measured, and one that says how each section ended. The job
`once:BACKEND:DTYPE:MODELS` queues every kernel once and writes nothing: to fill Triton's cache, or for a profiler.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from . import sections
from .harness import Bench, OutOfTime, Row, make_clock
from .sizes import SMOKE, Sizes

GRACE = 20  # seconds beyond a section's own


def measure(job: str, write: Any, sizes: Sizes, device: torch.device) -> None:
    name, backend, seconds = job.split(":")
    start = time.monotonic()
    rows = 0

    def count(row: Row) -> None:
        nonlocal rows
        rows += 1
        write(row)
        print(f"{time.monotonic() - start:6.1f} s  {row['id']}", file=sys.stderr, flush=True)

    # A section looks at the time between its cases. What hangs within one ends the process, and says where it was.
    faulthandler.dump_traceback_later(float(seconds) + GRACE, exit=True)
    bench = Bench(backend, device, sizes, make_clock(device), start + float(seconds), count)
    end: dict[str, Any] = {"section": name, "backend": backend, "status": "ok"}
    try:
        sections.function(name)(bench)
    except OutOfTime:
        end |= {"status": "incomplete", "error": f"its time was up after {seconds} s"}
    except Exception as error:
        traceback.print_exc()
        last = str(error).strip().splitlines()
        end |= {"status": "failed", "error": f"{type(error).__name__}: {last[0] if last else ''}"[:400]}
    faulthandler.cancel_dump_traceback_later()
    if bench.on_gpu:
        torch.cuda.empty_cache()
    write({**end, "seconds": round(time.monotonic() - start, 1), "rows": rows})


def once(job: str, sizes: Sizes, device: torch.device) -> None:
    from . import kernels

    _, backend, dtype, models = job.split(":")
    bench = Bench(backend, device, sizes, make_clock(device), time.monotonic() + 600, lambda row: None)
    kernels.once(bench, dtype, int(models))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("rows", type=Path)
    parser.add_argument("jobs", nargs="+")
    parser.add_argument("--smoke", action="store_true")
    arguments = parser.parse_args()
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    sizes = SMOKE if arguments.smoke else Sizes()
    with arguments.rows.open("a") as file:

        def write(row: Row) -> None:
            file.write(json.dumps(row) + "\n")
            file.flush()

        for job in arguments.jobs:
            if job.startswith("once:"):
                once(job, sizes, device)
            else:
                measure(job, write, sizes, device)


if __name__ == "__main__":
    main()
