"""The Triton versions that tests run with, each in a process of its own."""

import importlib.util
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ROOT = TESTS.parents[2]
VERSIONS = ["installed", "3.9.0"]


def directory_of(version):
    """Where a version is, for PYTHONPATH; None for the installed one. Skips the test if it is not there."""
    if version == "installed":
        if importlib.util.find_spec("triton") is None:
            pytest.skip("triton is not installed")
        return None
    found = Path(os.environ.get("WARPMERGE_TRITON_39", ROOT / "build/triton-3.9.0"))
    if not (found / "triton").is_dir():
        pytest.skip(
            f"there is no triton {version} in {found} (pip install --no-deps --target {found} triton=={version})"
        )
    return found


def run(version, program, *arguments, interpret):
    """The lines that a program in this folder prints."""
    directory = directory_of(version)
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(ROOT / "build/triton-cache")
    if interpret:
        environment["TRITON_INTERPRET"] = "1"
    if directory:
        environment["PYTHONPATH"] = os.pathsep.join([str(directory), environment.get("PYTHONPATH", "")]).rstrip(":")
    done = subprocess.run(
        [sys.executable, TESTS / program, *arguments], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def printed(request):
    """Futures of what programs print, by version and program. Those of all chosen tests of a file are started at once,
    to run as many at a time as there are processors; the file says in INTERPRET whether kernels are interpreted."""
    tests = [item for item in request.session.items if item.path == request.path and "printed" in item.fixturenames]
    chosen = [(item.callspec.params["version"], item.callspec.params["program"]) for item in tests]
    pool = ThreadPoolExecutor(os.cpu_count())
    yield {(v, p): pool.submit(run, v, *p, interpret=request.module.INTERPRET) for v, p in chosen}
    pool.shutdown(cancel_futures=True)


FIXTURES = (printed,)  # a test file binds it to this name
