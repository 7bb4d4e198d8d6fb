"""Makes tests/helpers.py importable, and keeps every test off the network."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported, so set before any test is
