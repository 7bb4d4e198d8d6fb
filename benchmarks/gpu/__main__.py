"""The steps of `make gpu`: build, tests, measurements, report. Exit status 1 if anything failed."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from ..machine import ROOT
from . import report
from .sections import BACKENDS, NAMES, RESIDENT, SECTIONS, Section
from .sizes import Sizes
from .steps import Step, build, profile, read_lines, run_tests, smoke_environment

STEPS = ("build", "tests", "measure")
LEAST = 5  # seconds: with less left a section is not begun


class Run:
    """`seconds`: that are left are given out to the steps, none more than its own share.

    After each step the result so far is written to `output`, beside it the logs: what is stopped keeps what it has.
    """

    def __init__(self, options: argparse.Namespace, about: dict[str, Any]) -> None:
        self.about = about
        work = ROOT / "build" / ("gpu-smoke" if options.smoke else "gpu")
        self.site = work / "site"  # the package that is built
        self.folder = options.output / "logs" if options.output else work
        self.output = options.output or (work if options.smoke else report.RESULTS)
        _clear(self.folder)
        self.smoke: bool = options.smoke
        self.sections: list[str] = options.sections
        self.end = time.monotonic() + options.seconds
        self.start = time.monotonic()
        self.environment = smoke_environment() if self.smoke else {}
        self.outcomes: list[dict[str, Any]] = []
        self.rows = self.folder / "rows.jsonl"
        self.checkpoints: subprocess.Popen | None = None
        self.missing: dict[str, str] = {}

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
        self.save()
        backend = f" {outcome['backend']}" if outcome.get("backend") else ""
        error = f": {outcome['error']}" if outcome.get("error") else ""
        self.say(f"{outcome['section']}{backend}: {outcome['status']}, {outcome['seconds']:.0f} s{error}")

    def save(self) -> tuple[dict[str, Any], Path]:
        """Writes what there is so far."""
        rows = [line for line in read_lines(self.rows) if "id" in line]
        result = report.make(self.about, rows, self.outcomes)
        return result, report.write(result, self.output)

    @property
    def failed(self) -> bool:
        return any(outcome["status"] not in ("ok", "skipped") for outcome in self.outcomes)

    # --- the order ------------------------------------------------------------------------------------------------

    def everything(self, steps: Sequence[str]) -> None:
        """What matters most first: the kernels of CUDA, then files, then all of Triton, whose kernels are compiled."""
        measures, tests = "measure" in steps, "tests" in steps and not self.smoke
        if "build" in steps and not self.smoke:
            if measures and "disk" in self.sections:
                self.make_checkpoints()
            self.step("build", lambda: build(self.folder, self.site, self.left(240)))
        if measures:
            self._probe()
            self.measure("torch", NAMES)
            self.measure("cuda", RESIDENT)
            if "kernels" in self.sections and "cuda" not in self.missing and not self.smoke:
                self.step("profile", lambda: profile(self.folder, self.left(60), self.rows))
        if tests:
            self.step("tests", lambda: run_tests(self.folder, self.left(90), "not triton"))
        if measures:
            self.measure("cuda", set(NAMES) - RESIDENT)
            if "kernels" in self.sections and "triton" not in self.missing and not self.smoke:
                self._compile()
            self.measure("triton", NAMES)
        if tests:
            self.step("tests", lambda: run_tests(self.folder, self.left(160), "triton"))
        if self.checkpoints:
            self.checkpoints.terminate()

    def make_checkpoints(self) -> None:
        """In the background, while the package is built: writing them takes half a minute. `disk` uses them."""
        shape = Sizes.shape
        command = [sys.executable, "-m", "benchmarks.checkpoints", shape, str(ROOT / "build" / "bench" / shape)]
        with (self.folder / "checkpoints.log").open("w") as log:
            self.checkpoints = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)

    # --- measuring ------------------------------------------------------------------------------------------------

    def measure(self, backend: str, names: Collection[str]) -> None:
        """The sections of these names that are wanted, all by one process."""
        jobs = [s for s in SECTIONS if s.name in self.sections and s.name in names and backend in s.backends]
        if self.checkpoints and any(section.name == "disk" for section in jobs):
            self.checkpoints.wait()
        if backend not in self.missing:
            self._worker(backend, jobs)
            return
        status = "skipped" if self.smoke else "failed"
        for section in jobs:
            self._unmeasured(section, backend, status, self.missing[backend])

    def _unmeasured(self, section: Section, backend: str, status: str, why: str, seconds: float = 0.0) -> None:
        named = {"section": section.name, "backend": backend, "status": status}
        self.note({**named, "seconds": seconds, "rows": 0, "error": why})

    def _probe(self) -> None:
        """Asks why backends cannot be measured."""
        command = [sys.executable, "-m", "benchmarks.gpu.probe"]
        done = subprocess.run(command, cwd=ROOT, env=self._environment(), capture_output=True, text=True)
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
            self.missing = dict.fromkeys(BACKENDS, last)
            return
        found = json.loads(done.stdout)
        self.about |= found["versions"]
        self.missing = found["missing"]

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

    def _worker(self, backend: str, jobs: Sequence[Section]) -> None:
        """Measures in a process of its own. One that crashes is started again behind the section that it was in."""
        while jobs:
            seconds = self.left(sum(section.seconds for section in jobs))
            if seconds < LEAST:
                for section in jobs:
                    self._unmeasured(section, backend, "not run", "no time was left")
                return
            self.say(f"{backend}: {'; '.join(section.about for section in jobs)} ...")
            each = [f"{section.name}:{backend}:{min(seconds, section.seconds):.0f}" for section in jobs]
            command = [sys.executable, "-m", "benchmarks.gpu.worker", str(self.rows), *each]
            step = Step(command, self.folder / "measure.log", self._environment(), seconds + 30)
            jobs = self._followed(step, backend, list(jobs))

    def _followed(self, step: Step, backend: str, jobs: list[Section]) -> list[Section]:
        """Runs the process, notes each section as it ends, and returns those that it did not come to."""
        before = len(read_lines(self.rows))

        def note_new() -> None:
            nonlocal before
            lines = read_lines(self.rows)
            for line in lines[before:]:
                if "section" in line:
                    jobs.pop(0)
                    self.note(line)
            before = len(lines)

        status = step.run(["--smoke"] if self.smoke else [], meanwhile=note_new)
        note_new()
        if jobs:
            self._unmeasured(jobs.pop(0), backend, "failed", f"{status}: {step.last_line()}", step.seconds)
        return jobs

    def _environment(self) -> dict[str, str]:
        return {**os.environ, **self.environment}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="Build, test and measure on a GPU.")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, on the CPU where there is no GPU; no file")
    parser.add_argument("--steps", type=_names(STEPS), default=list(STEPS), help=f"of {','.join(STEPS)}")
    parser.add_argument("--sections", type=_names(NAMES), default=list(NAMES), help=f"of {','.join(NAMES)}")
    parser.add_argument("--seconds", type=float, default=470, help="for everything; default: %(default)s")
    parser.add_argument(
        "--output", type=Path, help="folder of the result and, in logs, of the logs; default: benchmarks/results"
    )
    options = parser.parse_args()
    about = report.describe()  # now: later its load would be our own
    if not options.smoke and not about["gpu"]:
        sys.exit("no GPU: nvidia-smi finds none. --smoke runs the measurements without one, to see that they work.")
    run = Run(options, about)
    if not run.smoke:
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(run.site), os.environ.get("PYTHONPATH")]))
    run.everything(options.steps)
    result, path = run.save()
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
