"""Makes the helpers beside the tests importable from every folder, and keeps every test off the network."""

import gc
import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(folder) for folder in (HERE, *sorted(HERE.rglob("*/"))) if folder.name != "__pycache__"]
os.environ["OPENBLAS_NUM_THREADS"] = "1"  # numpy's: the oracles' matrices are small, and threads would only wait
os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported, so set before any test is


def pytest_collection_finish():
    """Tests collect garbage to see what is left behind: that need not look at torch and at thousands of tests."""
    gc.freeze()
