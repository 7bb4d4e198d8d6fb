"""A merge that is killed at any call to the system: what it leaves is the old model, the new one or none, and the next
merge makes its own model of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import FILES, llama, write_model, write_recipe, write_ties


@pytest.fixture
def models(tmp_path):
    """Three merges: the one that is killed, the one whose model was there before, and one that has fewer files."""
    write_ties(tmp_path)
    for name, files in (("c", FILES | {"vocab.txt": "old"}), ("d", {})):
        write_model(tmp_path / name, llama(9, layers=3), files=files, config=None)
    for recipe, model in (("old.yml", "c"), ("other.yml", "d")):
        document = {"merge_method": "linear", "models": [str(tmp_path / model)], "parameters": {"weight": 1}}
        write_recipe(tmp_path / recipe, document)
    return tmp_path


# Whether an old model is there, the size of shards, sync, and what is run after the kill.
SCENARIOS = {
    "new, resumed": ["none", "600", "no-sync", "", "r.yml", "resume"],
    "new on the disk, resumed": ["none", "5GB", "sync", "", "r.yml", "resume"],
    "over an old model, resumed": ["old", "600", "sync", "overwrite", "r.yml", "resume"],
    "over an old model, begun again": ["old", "5GB", "no-sync", "overwrite", "r.yml"],
    "over an old model, then another merge": ["old", "600", "no-sync", "overwrite", "other.yml", "resume"],
}


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
def test_a_kill_at_every_call(models, scenario):
    path = os.pathsep.join([*sys.path, str(Path(__file__).parents[1])])
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("kills.py"), models, *scenario],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert (done.stdout.strip(), done.stderr) == ("none", "")
