"""Steps that are commands: the build, the tests and the profiler, each with a time limit and a log."""

from __future__ import annotations

import contextlib
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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..machine import ROOT
from . import progress

LOG_BYTES = 8 << 20
POLL_SECONDS = 0.5
MEMORY_TESTS = "tests/backends/gpu/test_gpu_memory.py"  # these take nearly all of the device: nothing else may run then
OUTCOMES = ("passed", "failed", "skipped")
NOTHING_SELECTED = "exit status 5"  # of pytest
MARK = "pytest.mark.gpu"
PROFILED = (
    "^(weighted_sum|elect_and_sum|gram|sample_keys|sweep_keys|count_ties|reduce_columns|fold_|sum_blocks"
    "|formula_values|rank_rows|multiply)"
)


class Step:
    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str], limit: float) -> None:
        self.command, self.log, self.environment, self.limit = list(command), log, dict(environment), limit
        self.seconds = 0.0

    def run(self, more: Sequence[str] = (), meanwhile: Callable[[], None] = lambda: None) -> str:
        """Runs the command with its output added to the log; says how it ended, "" for well.

        `meanwhile` is called again and again until it ends.
        """
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
                while child.poll() is None and time.monotonic() - start < max(1.0, self.limit):
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        child.wait(POLL_SECONDS)
                    meanwhile()
                ended = f"exit status {child.poll()}" if child.poll() else ""
                if child.poll() is None:
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


def build(logs: Path, site: Path, limit: float) -> dict[str, Any]:
    """Installs the package into a folder of its own, for this machine's GPU, with what the machine has.

    Where the CUDA kernels cannot be built it is built without them: Triton's need no compiler.
    """
    options = ["--no-build-isolation", "--no-deps", "--no-index", "--upgrade", "--target", str(site)]
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", **_architecture()}
    command = [sys.executable, "-m", "pip", "install", "-v", *options, str(ROOT)]
    start = time.monotonic()
    errors = []
    for more in ({}, {"WARPMERGE_CUDA": "off"}):
        for stale in (ROOT / "build").glob("lib*"):
            shutil.rmtree(stale)
        left = limit - (time.monotonic() - start)
        step = Step(command, logs / "build.log", environment | more, left)
        if not (ended := step.run()):
            break
        print(step.tail(), flush=True)
        errors.append(f"{' '.join(f'{k}={v}' for k, v in more.items())} {ended}, see {step.log}".strip())
    status = "failed" if errors else "ok"
    return {
        "section": "build",
        "status": status,
        "seconds": time.monotonic() - start,
        "error": "; ".join(errors),
    }


def _architecture() -> dict[str, str]:
    """Code for the GPU that is there alone compiles several times faster."""
    if os.environ.get("CUDAARCHS"):
        return {}
    lines = output_of(["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"])
    found = sorted({line.strip().replace(".", "") for line in lines if line.strip()})
    return {"CUDAARCHS": ";".join(found)} if found else {}


def run_tests(folder: Path, limit: float, selected: str) -> dict[str, Any]:
    """The tests that need a GPU and that `-k selected` names: side by side where pytest-xdist is there, those that fill
    the GPU's memory alone."""
    parallel = importlib.util.find_spec("xdist") is not None
    workers = ["-n", str(min(14, max(1, (os.cpu_count() or 2) - 2)))] if parallel else []
    files = {str(p.relative_to(ROOT)) for p in (ROOT / "tests").rglob("test_*.py") if MARK in p.read_text()}
    groups = {"tests": [*sorted(files - {MEMORY_TESTS}), *workers], "tests-memory": [MEMORY_TESTS]}
    problems: list[str] = []
    lines = folder / f"tests-{selected.replace(' ', '-')}.jsonl"
    start = time.monotonic()
    for name, chosen in groups.items():
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-k", selected, "-p", "no:cacheprovider"]
        more = ["-p", progress.__name__, "--continue-on-collection-errors", "--durations=8", *chosen]
        left = max(10.0, limit - (time.monotonic() - start))
        step = Step([*command, *more], folder / f"{name}.log", {**os.environ, progress.VARIABLE: str(lines)}, left)
        if (ended := step.run()) and ended != NOTHING_SELECTED:
            print(step.tail(), flush=True)
            problems.append(f"{name}: {ended}, see {step.log}")
    counts = count_tests(lines)
    if not counts["passed"]:
        problems.append("no test was run to its end")
    error = "; ".join(problems)
    return {
        "section": f"tests, {selected}",
        "status": "failed" if error else "ok",
        "seconds": time.monotonic() - start,
        "error": error,
        "tests": counts,
    }


def count_tests(lines: Path) -> dict[str, Any]:
    """How the tests ended of which there are lines."""
    ended = read_lines(lines)
    counts: dict[str, Any] = {name: sum(e["outcome"] == name for e in ended) for name in OUTCOMES}
    counts["failures"] = [f"{e['test']}: {e['error']}" for e in ended if e["outcome"] == "failed"][:100]
    return counts


def read_lines(path: Path) -> list[dict[str, Any]]:
    """One JSON object a line; a line that a process was stopped in is left out."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _ncu() -> str | None:
    """The profiler: on the path, or where CUDA and Nsight Compute are usually installed."""
    usual = [*Path("/usr/local").glob("cuda*/bin/ncu"), *Path("/opt/nvidia/nsight-compute").glob("*/ncu")]
    return shutil.which("ncu") or next(map(str, sorted(usual, reverse=True)), None)


def profile(folder: Path, limit: float, rows: Path) -> dict[str, Any]:
    """The DRAM throughput of each CUDA kernel by the hardware's counters, where the profiler may read them."""
    outcome: dict[str, Any] = {"section": "profile", "backend": "cuda", "status": "skipped", "seconds": 0.0}
    if (ncu := _ncu()) is None:
        return {**outcome, "error": "there is no ncu"}
    if limit < 20:
        return {**outcome, "error": "no time was left"}
    # The clocks stay as they are: by default the profiler would fix them.
    command = [ncu, "--clock-control", "none", "--csv", "--metrics", ",".join(METRICS.values())]
    command += ["--kernel-name", f"regex:{PROFILED}", "--launch-count", "140"]
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
    kernels = _profiled(log.read_text(errors="replace"))
    with rows.open("a") as file:
        for name, counters in kernels.items():
            row = {"id": f"gpu profile {name}", "group": "gpu profile", "what": name, "backend": "cuda"}
            row |= {**counters, "seconds": {"median": counters["ns"] / 1e9}}
            file.write(json.dumps(row) + "\n")
    if not kernels:
        return {**outcome, "error": ended or "the profiler reported no kernel"}
    return {**outcome, "status": "ok", "rows": len(kernels)}


def _profiled(text: str) -> dict[str, dict[str, float]]:
    """The counters of each kernel's longest launch."""
    start = text.find('"ID"')
    if start < 0:
        return {}
    names = {metric: name for name, metric in METRICS.items()}
    launches: dict[tuple[str, str], dict[str, float]] = {}
    for row in csv.DictReader(io.StringIO(text[start:])):
        try:
            value = float(row["Metric Value"].replace(",", "")) * UNITS.get(row["Metric Unit"], 1.0)
            launches.setdefault((row["ID"], _plain(row["Kernel Name"])), {})[names[row["Metric Name"]]] = value
        except (KeyError, TypeError, ValueError, AttributeError):
            continue
    longest: dict[str, dict[str, float]] = {}
    for (_, name), counters in launches.items():
        if counters.get("ns", 0.0) > longest.get(name, {"ns": 0.0})["ns"]:
            longest[name] = counters
    return longest


def _plain(name: str) -> str:
    """A kernel's name without its type and arguments."""
    return (re.split(r"[<(]", name)[0].split() or [name])[-1]


_STALLED = "smsp__average_warps_issue_stalled_{}_per_issue_active.ratio"
# The counters that a row has, and the profiler's names of them.
METRICS = {
    "% of peak": "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "bytes": "dram__bytes.sum",
    "ns": "gpu__time_duration.sum",
    "% issue": "smsp__issue_active.avg.pct_of_peak_sustained_active",
    "% alu": "sm__inst_executed_pipe_alu.avg.pct_of_peak_sustained_active",
    "% fma": "sm__inst_executed_pipe_fma.avg.pct_of_peak_sustained_active",
    "% fp64": "sm__inst_executed_pipe_fp64.avg.pct_of_peak_sustained_active",
    "% xu": "sm__inst_executed_pipe_xu.avg.pct_of_peak_sustained_active",
    "% warps": "sm__warps_active.avg.pct_of_peak_sustained_active",
    "stall, memory": _STALLED.format("long_scoreboard"),
    "stall, pipe": _STALLED.format("math_pipe_throttle"),
    "stall, wait": _STALLED.format("wait"),
}
# What a metric's unit is in bytes, nanoseconds or percent.
UNITS = {"Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9, "us": 1e3, "usecond": 1e3, "ms": 1e6, "msecond": 1e6, "s": 1e9}
