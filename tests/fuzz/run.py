"""Fuzzes the readers of files. `make fuzz` runs this; it prints how many inputs of each kind were read and refused.

    python tests/fuzz/run.py --inputs 1000000     inputs from seeds: the same ones each time
    python tests/fuzz/run.py --replay header build/fuzz/header-17

An input that breaks a promise is kept in build/fuzz. So is one that takes longer than SECONDS; one that takes more than
MEMORY is told of by its thousand.
"""

from __future__ import annotations

import argparse
import faulthandler
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS / folder) for folder in ("fuzz", "attacks", "")]
os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")

from fuzz_targets import TARGETS, Target  # noqa: E402 - the path is set above

KEPT = TESTS.parent / "build" / "fuzz"
BATCH = 500
SECONDS = 20  # for one input, which takes milliseconds
MEMORY = 256 << 20  # bytes by which a batch may grow the process
# How many of 100 inputs a target gets: those that merge take longer.
SHARES = {"header": 70, "index": 24, "recipe": 3, "config": 1, "manifest": 1, "journal": 1}


class Hang(BaseException):
    pass


def hang(*_: Any) -> None:
    raise Hang


def folder() -> Path:
    memory = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="warpmerge-fuzz-", dir=memory if memory.is_dir() else None))


def run_batch(name: str, first: int, count: int) -> tuple[str, Counter[str], list[str]]:
    """Inputs of the seeds from `first` on. Returns what happened, and a line for each broken promise."""
    signal.signal(signal.SIGALRM, hang)
    faulthandler.dump_traceback_later(SECONDS * BATCH, exit=True)  # a hang in native code, which no signal ends
    place = folder()
    seen: Counter[str] = Counter()
    problems: list[str] = []
    try:
        target = TARGETS[name](place)
        target.check(target.generate(random.Random(0)))  # whatever is imported or allocated once
        before = peak()
        for seed in range(first, first + count):
            data = target.generate(random.Random(seed))
            problem = attempt(target, data, seen)
            if problem:
                KEPT.mkdir(parents=True, exist_ok=True)
                (KEPT / f"{name}-{seed}").write_bytes(data)
                problems.append(f"{name}-{seed}: {problem}")
        if peak() - before > MEMORY:
            problems.append(f"{name}-{first} and {count - 1} more: they took {peak() - before:,} bytes")
    finally:
        faulthandler.cancel_dump_traceback_later()
        shutil.rmtree(place)
    return name, seen, problems


def attempt(target: Target, data: bytes, seen: Counter[str]) -> str:
    """What is wrong with this input, or nothing."""
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        seen[target.check(data)] += 1
        return ""
    except Hang:
        return f"more than {SECONDS} seconds"
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:300]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def batches(inputs: int, seed: int, only: str | None) -> list[tuple[str, int, int]]:
    counts = {only: inputs} if only else {name: inputs * share // 100 for name, share in SHARES.items()}
    starts = [(name, at, min(BATCH, count - at)) for name, count in counts.items() for at in range(0, count, BATCH)]
    return [(name, seed * 10**9 + at, count) for name, at, count in starts]


def fuzz(inputs: int, seed: int, only: str | None, jobs: int) -> bool:
    started = time.time()
    seen = {name: Counter[str]() for name in TARGETS}
    problems: list[str] = []
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        for future in as_completed([pool.submit(run_batch, *batch) for batch in batches(inputs, seed, only)]):
            name, found, wrong = future.result()
            seen[name] += found
            problems += wrong
            for line in wrong:
                print(line, flush=True)
    print(f"{'target':<10} {'inputs':>9} {'read':>9} {'refused':>9}")
    for name, found in seen.items():
        if found:
            print(f"{name:<10} {found.total():>9,} {found['read']:>9,} {found['refused']:>9,}")
    total = sum(found.total() for found in seen.values())
    print(f"{'all':<10} {total:>9,} in {time.time() - started:.0f} s; {len(problems)} broken promises")
    return not problems and total > 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", choices=TARGETS)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--replay", nargs=2, metavar=("TARGET", "FILE"))
    arguments = parser.parse_args()
    if arguments.replay:
        name, file = arguments.replay
        print(TARGETS[name](folder()).check(Path(file).read_bytes()))
        return
    sys.exit(0 if fuzz(arguments.inputs, arguments.seed, arguments.target, arguments.jobs) else 1)


if __name__ == "__main__":
    main()
