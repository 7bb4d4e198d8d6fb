"""`make gpu` without a GPU: every section of the measurements runs, on the CPU and with tiny sizes, and gives rows."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EMULATED = importlib.util.find_spec("warpmerge._cuda_emulated") is not None
TRITON = importlib.util.find_spec("triton") is not None

pytestmark = pytest.mark.skipif(not (EMULATED or TRITON), reason="neither emulated CUDA kernels nor Triton")


def benchmark(*arguments, **variables):
    environment = {k: v for k, v in os.environ.items() if k not in ("WARPMERGE_BACKEND", "WARPMERGE_ISA")} | variables
    command = [sys.executable, "-m", "benchmarks.gpu", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    done = benchmark("--smoke", "--output", str(folder))
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    (file,) = folder.glob("*.json")
    return json.loads(file.read_text()), done.stdout


def expected():
    from benchmarks.gpu.sections import SECTIONS

    there = {"torch": True, "cuda": EMULATED, "triton": TRITON}
    return {(s.name, b): there[b] for s in SECTIONS for b in s.backends}


@pytest.fixture(autouse=True)
def root_on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))


def test_every_section_gave_rows(smoke):
    result, _ = smoke
    ended = {(s["section"], s["backend"]): s for s in result["sections"]}
    for section, there in expected().items():
        assert ended[section]["status"] == ("ok" if there else "skipped"), ended[section]
        assert bool(ended[section]["rows"]) == there


def test_rows_have_times_or_say_why_not(smoke):
    result, _ = smoke
    assert len({row["id"] for row in result["rows"]}) == len(result["rows"]), "two rows of one name"
    for row in result["rows"]:
        assert "note" in row or row["seconds"]["min"] <= row["seconds"]["median"] <= row["seconds"]["max"], row


def test_every_kernel_and_method_is_there(smoke):
    result, _ = smoke
    kernels = {"weighted_sum", "elect_and_sum", "select", "sums", "gram", "reduce_blocks"}
    kernels |= {"formula", "ranks", "histogram", "rows", "products", "column_totals"}
    methods = {"linear", "task_arithmetic", "ties", "dare_linear", "dare_ties", "slerp"}
    for backend, there in (("cuda", EMULATED), ("triton", TRITON)):
        if there:
            rows = [row for row in result["rows"] if row["backend"] == backend]
            assert {row["kernel"] for row in rows if row["group"] == "gpu kernel"} == kernels
            assert {row["what"] for row in rows if row["group"] == "gpu method"} == methods
    (ties,) = [r for r in result["rows"] if r["group"] == "gpu method" and r["what"] == "ties"][:1]
    assert ties["plain"]["ratio"] > 0 and ties["argsort"]["ratio"] > 0


def test_the_tables_show_every_group(smoke):
    result, printed = smoke
    from benchmarks import tables
    from benchmarks.gpu.tables import COLUMNS

    text = tables.render(result)
    for group in {row["group"] for row in result["rows"]}:
        assert f"| {next(iter(COLUMNS[group]))} |" in text
    assert "| kernel " in printed and "| step " in printed


def test_a_section_that_fails_does_not_stop_the_others(tmp_path):
    """Without any backend: they are named with the reason, what needs none is measured."""
    options = ["--sections", "roofs,kernels", "--output", str(tmp_path)]
    done = benchmark("--smoke", *options, PYTHONPATH=str(hide_package(tmp_path)))
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.glob("*.json")
    result = json.loads(file.read_text())
    assert {s["section"]: s["status"] for s in result["sections"]} == {"kernels": "skipped", "roofs": "ok"}
    assert "is broken" in next(s["error"] for s in result["sections"] if s["section"] == "kernels")


def hide_package(folder):
    """A folder whose package of the same name comes first and cannot be imported."""
    package = folder / "first" / "warpmerge"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('this package is broken')\n")
    return package.parent


def test_without_a_gpu_it_says_so(tmp_path):
    done = benchmark(PATH=str(tmp_path))
    assert done.returncode == 1
    assert "no GPU" in done.stderr


# --- what goes wrong ------------------------------------------------------------------------------------------------


def make_run(folder):
    """A run that saves into `folder`."""
    import argparse

    from benchmarks.gpu import __main__ as main

    options = argparse.Namespace(smoke=True, output=folder, sections=["kernels", "methods", "models"], seconds=60)
    return main, main.Run(options, {"gpu": "none", "commit": "0"})


WORKER = """
import json, os, pathlib, sys
for job in sys.argv[2:]:
    name = job.split(":")[0]
    if name == "methods":
        print("the device is gone")
        sys.stdout.flush()
        os._exit(3)
    if ":" in job:
        with open(sys.argv[1], "a") as file:
            file.write(json.dumps({"section": name, "backend": "cuda", "status": "ok", "seconds": 0.1}) + "\\n")
"""


def test_a_process_that_crashes_is_started_again_behind_the_section(tmp_path, monkeypatch):
    main, run = make_run(tmp_path)
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    real = main.Step

    def step(command, *more):
        return real([sys.executable, str(script), *command[3:]], *more)

    monkeypatch.setattr(main, "Step", step)
    run.measure("cuda", main.RESIDENT)
    (file,) = tmp_path.glob("*.json")
    ended = {s["section"]: s for s in json.loads(file.read_text())["sections"]}
    assert {name: s["status"] for name, s in ended.items()} == {"kernels": "ok", "methods": "failed", "models": "ok"}
    assert ended["methods"]["error"] == "exit status 3: the device is gone"


def test_what_has_ended_is_saved_at_once(tmp_path):
    _, run = make_run(tmp_path)
    for number, name in enumerate(("build", "profile"), 1):
        run.step(name, lambda name=name: {"section": name, "status": "ok", "seconds": 1.0})
        (file,) = tmp_path.glob("*.json")
        assert len(json.loads(file.read_text())["sections"]) == number


def test_tests_that_were_stopped_are_counted(tmp_path):
    from benchmarks.gpu import progress, report, steps

    case = tmp_path / "test_case.py"
    case.write_text(
        "import os, pytest\n"
        "def test_a(): pass\n"
        "def test_b(): assert 1 == 2\n"
        "@pytest.mark.skip\ndef test_c(): pass\n"
        "def test_d(): os._exit(1)\n"
    )
    lines = tmp_path / "lines.jsonl"
    command = [sys.executable, "-m", "pytest", "-p", progress.__name__, "-p", "no:cacheprovider", "--rootdir", tmp_path]
    subprocess.run([*command, case], cwd=ROOT, env={**os.environ, progress.VARIABLE: str(lines)}, capture_output=True)
    counts = steps.count_tests(lines)
    assert [counts[name] for name in steps.OUTCOMES] == [1, 1, 1]
    (failure,) = counts["failures"]
    assert "test_b" in failure
    outcomes = [{"section": "tests", "tests": counts}, {"section": "more", "tests": counts}, {"section": "build"}]
    assert report.make({}, [], outcomes)["tests"]["failed"] == 2


def test_counters_of_the_profiler():
    from benchmarks.gpu import steps

    head = '"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"\n'
    line = '"{}","void wm::gram_whole<int>(KernelLaunch)","{}","{}","{}"\n'
    time_name, bytes_name = steps.METRICS["ns"], steps.METRICS["bytes"]
    text = "==PROF== connected\n" + head
    text += line.format(0, time_name, "us", "2.5") + line.format(0, bytes_name, "Mbyte", "1,000")
    text += line.format(1, time_name, "us", "1.5") + line.format(1, "unknown", "%", "n/a")
    assert steps._profiled(text) == {"wm::gram_whole": {"ns": 2500.0, "bytes": 1e9}}
    assert steps._profiled("no kernel") == {}
