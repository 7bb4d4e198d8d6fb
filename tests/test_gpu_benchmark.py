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
    kernels = {"weighted_sum", "elect_and_sum", "select", "moments", "gram", "reduce_blocks"}
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
