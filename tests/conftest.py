"""Makes the helpers beside the tests importable from every folder, and keeps every test off the network."""

import gc
import os
import signal
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(folder) for folder in (HERE, *sorted(HERE.rglob("*/"))) if folder.name != "__pycache__"]
# Read when numpy, torch and huggingface_hub are imported, so set before any test is. Threads of torch and numpy only
# wait for each other in tensors as small as these, and sums of products may differ with their number.
os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")

# Jobs in the background ignore Ctrl-C, and those under nohup SIGHUP. Tests send themselves both.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_finish():
    """Tests collect garbage to see what is left behind: that need not look at torch and at thousands of tests."""
    gc.freeze()


@pytest.fixture
def registry():
    """Forgets the methods that a test registers."""
    from warpmerge.methods import REGISTRY

    before = dict(REGISTRY)
    yield REGISTRY
    REGISTRY.clear()
    REGISTRY.update(before)
