"""Signals that end a command: what it says, its exit status, and what it leaves."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers import run_process, write_model, write_recipe

ENDINGS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
# The first read of a weight sends the signal.
AT_WORK = """
import os, signal
from warpmerge import _core
signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background ignore it
def end(call, *_):
    if call == "pread":
        _core.watch(None)
        os.kill(os.getpid(), {number})
    return 0
_core.watch(end)
"""


@pytest.fixture
def models(tmp_path):
    for name in ["base", "a"]:
        write_model(tmp_path / name, {"w": np.ones(1 << 20, np.float32)})
    models = [str(tmp_path / name) for name in ["base", "a"]]
    write_recipe(tmp_path / "r.yml", {"merge_method": "linear", "models": models, "parameters": {"weight": 1}})
    return tmp_path


@pytest.mark.parametrize(("number", "status"), ENDINGS)
def test_a_command_at_work_cleans_up(models, number, status):
    done = run_process("merge", models / "r.yml", models / "out", setup=AT_WORK.format(number=int(number)))
    assert (done.status, done.stdout, done.stderr.strip()) == (status, "", "interrupted; nothing was published.")
    assert not (models / "out").exists()


@pytest.mark.parametrize(("number", "status"), ENDINGS)
def test_an_import_ends_without_a_word(models, number, status):
    setup = f"""
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
class Ending:
    def find_spec(self, name, *_):
        if name == "click":
            os.kill(os.getpid(), {int(number)})
sys.meta_path.insert(0, Ending())
"""
    assert run_process("info", setup=setup) == (-number, "", "")


def test_a_signal_that_is_ignored_stays_so(models):
    """As under nohup."""
    setup = AT_WORK.format(number=int(signal.SIGHUP)) + "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    done = run_process("merge", models / "r.yml", models / "out", "--quiet", setup=setup)
    assert done == (0, "", "")


def test_the_end_of_python_is_not_interrupted(models):
    setup = "import atexit, os, signal\natexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))\n"
    assert run_process("merge", models / "r.yml", models / "out", "--quiet", setup=setup) == (0, "", "")


def test_ctrl_c_at_any_moment_of_a_command(models):
    """From the first instruction on: no traceback, and an output only if the status says so."""
    command = [sys.executable, "-m", "warpmerge", "merge", str(models / "r.yml")]
    started = time.perf_counter()
    subprocess.run([*command, str(models / "first")], check=True, capture_output=True)
    whole = time.perf_counter() - started
    for step in range(12):
        out = models / f"out{step}"
        process = subprocess.Popen([*command, str(out)], stderr=subprocess.PIPE, text=True, start_new_session=True)
        time.sleep(0.03 + whole * step / 10)
        os.kill(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=60)
        assert "cli.py" not in said, said
        assert process.returncode in (0, 130, -signal.SIGINT) or "Traceback" in said  # of Python's own start
        assert (out / "model.safetensors").exists() == (process.returncode == 0)
