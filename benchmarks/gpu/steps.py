"""Steps that are commands: the build, the tests and the profiler, each with a time limit and a log."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..machine import ROOT

LOG_BYTES = 8 << 20
MEMORY_TESTS = "tests/backends/gpu/test_gpu_memory.py"  # these take nearly all of the device: nothing else may run then
MARK = "pytest.mark.gpu"
PROFILED = (
    "^(weighted_sum|elect_and_sum|moments|gram|sample_keys|sweep_keys|count_ties|reduce_columns|sum_blocks"
    "|formula_values|rank_rows|fold_row|multiply)"
)


class Step:
    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str], limit: float) -> None:
        self.command, self.log, self.environment, self.limit = list(command), log, dict(environment), limit
        self.seconds = 0.0

    def run(self, more: Sequence[str] = ()) -> str:
        """Runs the command with its output added to the log; says how it ended, "" for well."""
        start = time.monotonic()
        with self.log.open("ab") as log:
            # A session of its own, so that what it has started ends with it.
            child = subprocess.Popen(
                [*self.command, *more],
                cwd=ROOT,
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                status = child.wait(max(1.0, self.limit))
                ended = "" if status == 0 else f"exit status {status}"
            except subprocess.TimeoutExpired:
                ended = f"stopped after {self.limit:.0f} s"
            finally:
                _end(child)
        self.seconds = time.monotonic() - start
        _shorten(self.log)
        return ended

    def last_line(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else "it printed nothing"

    def tail(self, lines: int = 40) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def output_of(command: Sequence[str]) -> list[str]:
    """The lines that a command prints; none if it is not there or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.strip().splitlines() if done.returncode == 0 else []


def _end(child: subprocess.Popen) -> None:
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _shorten(log: Path) -> None:
    """Keeps the end of a log that has become too long."""
    size = log.stat().st_size
    if size > LOG_BYTES:
        with log.open("rb") as file:
            file.seek(size - LOG_BYTES)
            end = file.read()
        log.write_bytes(b"...\n" + end)


def smoke_environment() -> dict[str, str]:
    """Without a GPU: Triton's interpreter, and the CUDA kernels for the CPU."""
    return {} if output_of(["nvidia-smi", "-L"]) else {"TRITON_INTERPRET": "1", "WARPMERGE_CUDA_EMULATION": "1"}


def build(folder: Path, limit: float) -> dict[str, Any]:
    """Installs the package into a folder of its own, for this machine's GPU, with what the machine has."""
    for stale in (ROOT / "build").glob("lib*"):
        shutil.rmtree(stale)
    options = ["--no-build-isolation", "--no-deps", "--no-index", "--upgrade", "--target", str(folder / "site")]
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", **_architecture()}
    step = Step(
        [sys.executable, "-m", "pip", "install", "-v", *options, str(ROOT)], folder / "build.log", environment, limit
    )
    ended = step.run()
    if ended:
        print(step.tail(), flush=True)
        ended += f", see {step.log}"
    return {"section": "build", "status": "failed" if ended else "ok", "seconds": step.seconds, "error": ended}


def _architecture() -> dict[str, str]:
    """Code for the GPU that is there alone compiles several times faster."""
    if os.environ.get("CUDAARCHS"):
        return {}
    lines = output_of(["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"])
    found = sorted({line.strip().replace(".", "") for line in lines if line.strip()})
    return {"CUDAARCHS": ";".join(found)} if found else {}


def run_tests(folder: Path, limit: float) -> dict[str, Any]:
    """Every test that needs a GPU: side by side where pytest-xdist is there, those that fill its memory alone."""
    parallel = importlib.util.find_spec("xdist") is not None
    workers = ["-n", str(min(8, max(1, (os.cpu_count() or 2) // 2)))] if parallel else []
    files = {str(p.relative_to(ROOT)) for p in (ROOT / "tests").rglob("test_*.py") if MARK in p.read_text()}
    groups = {"tests": [*sorted(files - {MEMORY_TESTS}), *workers], "tests-memory": [MEMORY_TESTS]}
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    failures: list[str] = []
    problems: list[str] = []
    start = time.monotonic()
    for name, selected in groups.items():
        results = folder / f"{name}.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", f"--junitxml={results}"]
        more = ["--continue-on-collection-errors", "--durations=8", *selected]
        left = max(10.0, limit - (time.monotonic() - start))
        step = Step([*command, *more], folder / f"{name}.log", os.environ, left)
        ended = step.run()
        if ended:
            print(step.tail(), flush=True)
            problems.append(f"{name}: {ended}, see {step.log}")
        _count(results, counts, failures)
    if not counts["passed"]:
        problems.append("no test was run to its end")
    error = "; ".join(problems)
    return {
        "section": "tests",
        "status": "failed" if error else "ok",
        "seconds": time.monotonic() - start,
        "error": error,
        "tests": {**counts, "failures": failures[:100]},
    }


def _count(results: Path, counts: dict[str, int], failures: list[str]) -> None:
    try:
        cases = ElementTree.parse(results).iter("testcase")
    except (OSError, ElementTree.ParseError):  # it was stopped; its log is named with the error
        return
    for case in cases:
        bad = next((child for child in case if child.tag in ("failure", "error")), None)
        if bad is not None:
            counts["failed"] += 1
            message = (bad.get("message") or "").strip().splitlines()
            failures.append(f"{case.get('name')}: {message[0][:200] if message else bad.tag}")
        else:
            counts["skipped" if case.find("skipped") is not None else "passed"] += 1


def profile(folder: Path, limit: float, rows: Path) -> dict[str, Any]:
    """The DRAM throughput of each CUDA kernel by the hardware's counters, where the profiler may read them."""
    outcome: dict[str, Any] = {"section": "profile", "backend": "cuda", "status": "skipped", "seconds": 0.0}
    if shutil.which("ncu") is None:
        return {**outcome, "error": "there is no ncu"}
    if limit < 20:
        return {**outcome, "error": "no time was left"}
    metrics = ("dram__throughput.avg.pct_of_peak_sustained_elapsed", "dram__bytes.sum", "gpu__time_duration.sum")
    # The clocks stay as they are: by default the profiler would fix them.
    command = ["ncu", "--clock-control", "none", "--csv", "--metrics", ",".join(metrics)]
    command += ["--kernel-name", f"regex:{PROFILED}", "--launch-count", "80"]
    worker = [
        sys.executable,
        "-m",
        "benchmarks.gpu.worker",
        str(folder / "none.jsonl"),
        "once:cuda:bf16:3",
        "once:cuda:fp32:2",
    ]
    log = folder / "profile.log"
    step = Step([*command, *worker], log, os.environ, limit)
    ended = step.run()
    outcome["seconds"] = step.seconds
    kernels = _profiled(log.read_text(errors="replace"), metrics)
    with rows.open("a") as file:
        for name, (percent, nbytes, nanoseconds) in kernels.items():
            row = {"id": f"gpu profile {name}", "group": "gpu profile", "what": name, "backend": "cuda"}
            row |= {"% of peak": percent, "bytes": nbytes, "seconds": {"median": nanoseconds / 1e9}}
            file.write(json.dumps(row) + "\n")
    if not kernels:
        return {**outcome, "error": ended or "the profiler reported no kernel"}
    return {**outcome, "status": "ok", "rows": len(kernels)}


def _profiled(text: str, metrics: Sequence[str]) -> dict[str, tuple[float, float, float]]:
    """Of each kernel's launches the longest.."""
    start = text.find('"ID"')
    if start < 0:
        return {}
    launches: dict[tuple[str, str], dict[str, float]] = {}
    for row in csv.DictReader(io.StringIO(text[start:])):
        try:
            value = float(row["Metric Value"].replace(",", "")) * UNITS.get(row["Metric Unit"], 1.0)
        except (KeyError, TypeError, ValueError, AttributeError):
            continue
        launches.setdefault((row["ID"], _plain(row["Kernel Name"])), {})[row["Metric Name"]] = value
    longest: dict[str, tuple[float, float, float]] = {}
    for (_, name), values in launches.items():
        found = tuple(values.get(metric, 0.0) for metric in metrics)
        if found[2] > longest.get(name, (0.0, 0.0, 0.0))[2]:
            longest[name] = found
    return longest


def _plain(name: str) -> str:
    """A kernel's name without its type and arguments."""
    return (re.split(r"[<(]", name)[0].split() or [name])[-1]


# What a metric's unit is in bytes, nanoseconds or percent.
UNITS = {"Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9, "us": 1e3, "usecond": 1e3, "ms": 1e6, "msecond": 1e6, "s": 1e9}
