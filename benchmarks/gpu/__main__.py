"""The steps of `make gpu`: build, tests, measurements, report. Exit status 1 if anything failed."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..machine import ROOT
from . import report
from .sections import BACKENDS, NAMES, SECTIONS, Section
from .sizes import Sizes
from .steps import Step, build, profile, run_tests, smoke_environment

STEPS = ("build", "tests", "measure")
LEAST = 5  # seconds: with less left a section is not begun


class Run:
    """`seconds`: that are left are given out to the steps, none more than its own share."""

    def __init__(self, options: argparse.Namespace, about: dict[str, Any]) -> None:
        self.about = about
        self.folder = ROOT / "build" / ("gpu-smoke" if options.smoke else "gpu")
        _clear(self.folder)
        self.smoke: bool = options.smoke
        self.sections: list[str] = options.sections
        self.end = time.monotonic() + options.seconds
        self.start = time.monotonic()
        self.environment = smoke_environment() if self.smoke else {}
        self.outcomes: list[dict[str, Any]] = []
        self.rows = self.folder / "rows.jsonl"
        self.checkpoints: subprocess.Popen | None = None

    def left(self, most: float) -> float:
        return min(most, self.end - time.monotonic())

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self.start:4.0f} s] {text}", flush=True)

    def step(self, name: str, function: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Runs a step and notes how it ended; whatever goes wrong in it, the next one runs."""
        self.say(f"{name} ...")
        start = time.monotonic()
        try:
            outcome = function()
        except Exception as error:
            traceback.print_exc()
            outcome = {"section": name, "status": "failed", "seconds": time.monotonic() - start, "error": repr(error)}
        self.note(outcome)
        return outcome

    def note(self, outcome: dict[str, Any]) -> None:
        """How a step or a section ended."""
        self.outcomes.append(outcome)
        backend = f" {outcome['backend']}" if outcome.get("backend") else ""
        error = f": {outcome['error']}" if outcome.get("error") else ""
        self.say(f"{outcome['section']}{backend}: {outcome['status']}, {outcome['seconds']:.0f} s{error}")

    @property
    def failed(self) -> bool:
        return any(outcome["status"] not in ("ok", "skipped") for outcome in self.outcomes)

    def make_checkpoints(self) -> None:
        """In the background, while the package is built: writing them takes half a minute. `disk` uses them."""
        shape = Sizes.shape
        command = [sys.executable, "-m", "benchmarks.checkpoints", shape, str(ROOT / "build" / "bench" / shape)]
        with (self.folder / "checkpoints.log").open("w") as log:
            self.checkpoints = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)

    # --- measuring ------------------------------------------------------------------------------------------------

    def measure(self) -> None:
        self.rows.unlink(missing_ok=True)
        missing = self._probe()
        jobs = [
            (section, backend)
            for section in SECTIONS
            if section.name in self.sections
            for backend in section.backends
            if not self._skipped(section, backend, missing)
        ]
        if self.smoke:  # one process for all: importing torch takes longer than the measurements
            self._worker(jobs)
            return
        if "kernels" in self.sections and "triton" not in missing:
            self._compile()
        for section, backend in jobs:
            if section.name == "disk" and self.checkpoints:
                self.checkpoints.wait()
            self._worker([(section, backend)])
        if "kernels" in self.sections and "cuda" not in missing:
            self.step("profile", lambda: profile(self.folder, self.left(60), self.rows))

    def _probe(self) -> dict[str, str]:
        """Why backends cannot be measured."""
        command = [sys.executable, "-m", "benchmarks.gpu.probe"]
        done = subprocess.run(command, cwd=ROOT, env=self._environment(), capture_output=True, text=True)
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
            return dict.fromkeys(BACKENDS, last)
        found = json.loads(done.stdout)
        self.about |= found["versions"]
        return found["missing"]

    def _skipped(self, section: Section, backend: str, missing: dict[str, str]) -> bool:
        if backend not in missing:
            return False
        self.note(
            {
                "section": section.name,
                "backend": backend,
                "status": "skipped" if self.smoke else "failed",
                "seconds": 0.0,
                "rows": 0,
                "error": missing[backend],
            }
        )
        return True

    def _compile(self) -> None:
        """Triton's kernels, by several processes at once: they leave them in its cache."""
        self.say("compiling Triton's kernels ...")
        start = time.monotonic()
        cases = [f"once:triton:{dtype}:{models}" for dtype in ("bf16", "fp32") for models in (2, 3, 8)]
        with (self.folder / "compile.log").open("w") as log:
            command = [sys.executable, "-m", "benchmarks.gpu.worker", str(self.folder / "none.jsonl"), "--smoke"]
            options = {"cwd": ROOT, "env": self._environment(), "stdout": log, "stderr": log}
            children = [subprocess.Popen([*command, case], **options) for case in cases]
            limit = time.monotonic() + self.left(90)
            failed = 0
            for child in children:
                try:
                    failed += child.wait(max(0.1, limit - time.monotonic())) != 0
                except subprocess.TimeoutExpired:
                    child.kill()
                    child.wait()
                    failed += 1
        status, error = ("failed", f"{failed} of {len(children)} processes, see {log.name}") if failed else ("ok", "")
        seconds = time.monotonic() - start
        self.note({"section": "compile", "backend": "triton", "status": status, "seconds": seconds, "error": error})

    def _worker(self, jobs: Sequence[tuple[Section, str]]) -> None:
        """Measures in a process of its own, and notes how it ended even if it crashed."""
        if not jobs:
            return
        seconds = self.left(sum(section.seconds for section, _ in jobs))
        names = ", ".join(f"{section.name} {backend}" for section, backend in jobs)
        if seconds < LEAST:
            for section, backend in jobs:
                row = {"section": section.name, "backend": backend, "status": "not run", "seconds": 0.0}
                self.note({**row, "error": "no time was left"})
            return
        self.say(f"{names}: {'; '.join(dict.fromkeys(section.about for section, _ in jobs))} ...")
        each = [f"{section.name}:{backend}:{min(seconds, section.seconds):.0f}" for section, backend in jobs]
        command = [sys.executable, "-m", "benchmarks.gpu.worker", str(self.rows), *each]
        before = len(_lines(self.rows))
        # A section looks at the time itself, between its cases.
        step = Step(command, self.folder / "measure.log", self._environment(), seconds + 30)
        status = step.run(["--smoke"] if self.smoke else [])
        ends = {(e["section"], e["backend"]): e for e in _lines(self.rows)[before:] if "section" in e}
        for section, backend in jobs:
            end = ends.get((section.name, backend))
            if end is None:
                end = {"section": section.name, "backend": backend, "status": "failed", "seconds": step.seconds}
                end["error"] = f"{status}: {step.last_line()}"
            self.note(end)

    def _environment(self) -> dict[str, str]:
        return {**os.environ, **self.environment}


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="Build, test and measure on a GPU.")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, on the CPU where there is no GPU; no file")
    parser.add_argument("--steps", type=_names(STEPS), default=list(STEPS), help=f"of {','.join(STEPS)}")
    parser.add_argument("--sections", type=_names(NAMES), default=list(NAMES), help=f"of {','.join(NAMES)}")
    parser.add_argument("--seconds", type=float, default=470, help="for everything; default: %(default)s")
    parser.add_argument("--output", type=Path, help="folder of the result file; default: benchmarks/results")
    options = parser.parse_args()
    about = report.describe()  # now: later its load would be our own
    if not options.smoke and not about["gpu"]:
        sys.exit("no GPU: nvidia-smi finds none. --smoke runs the measurements without one, to see that they work.")
    run = Run(options, about)
    tests: dict[str, Any] | None = None
    if not options.smoke:
        if "measure" in options.steps and "disk" in options.sections:
            run.make_checkpoints()
        site = [str(run.folder / "site"), os.environ.get("PYTHONPATH")]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, site))
        if "build" in options.steps:
            run.step("build", lambda: build(run.folder, run.left(240)))
        if "tests" in options.steps:
            tests = run.step("tests", lambda: run_tests(run.folder, run.left(160))).pop("tests", None)
    if "measure" in options.steps:
        run.measure()
    if run.checkpoints:
        run.checkpoints.terminate()
    rows = [line for line in _lines(run.rows) if "id" in line]
    result = report.make(about, rows, run.outcomes, tests)
    folder = options.output or (run.folder if options.smoke else report.RESULTS)
    path = report.write(result, folder)
    print(f"\n{report.text(result)}\n\n{path}", flush=True)
    sys.exit(1 if run.failed else 0)


def _clear(folder: Path) -> None:
    """Removes what an earlier run left, but for the package that it built."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path.is_file():
            path.unlink()


def _names(known: Sequence[str]) -> Any:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := set(names) - set(known):
            raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: not one of {', '.join(known)}")
        return names

    return parse


if __name__ == "__main__":
    main()
