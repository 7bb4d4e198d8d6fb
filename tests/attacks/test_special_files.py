"""FIFOs, sockets, devices, directories and links under the names of small files and shards: refused, and never waited
for. pytest's timeout ends a test that hangs."""

import pytest
from helpers import INDEX, SINGLE, contents, llama, run_cli, write_model, write_recipe
from special_files import SPECIAL, directory
from warpmerge.models import Shard
from warpmerge.models.output import JOURNAL, STAGING
from warpmerge.system import remove

pytestmark = pytest.mark.timeout(60)
SHARD = "model-00001-of-00002.safetensors"
# What the file is, its path, and the exit status.
PLACES = {
    "recipe": ("r.yml", 2),
    "config": ("a/config.json", 1),
    "companion": ("a/vocab.txt", 1),
    "weights": (f"b/{SINGLE}", 1),
    "index": (f"a/{INDEX}", 1),
    "shard": (f"a/{SHARD}", 1),
}


@pytest.fixture
def models(tmp_path):
    write_model(tmp_path / "a", llama(0), shards=2)
    write_model(tmp_path / "b", llama(1))
    models = [str(tmp_path / name) for name in "ab"]
    write_recipe(tmp_path / "r.yml", {"merge_method": "linear", "models": models, "parameters": {"weight": 1}})
    return tmp_path


@pytest.mark.parametrize("make", SPECIAL, ids=lambda make: make.__name__)
@pytest.mark.parametrize("place", PLACES)
def test_what_is_no_file_is_refused_while_the_merge_is_planned(models, make, place):
    name, status = PLACES[place]
    (models / name).unlink(missing_ok=True)
    make(models / name)
    ways = [run_cli("plan", models / "r.yml"), run_cli("merge", models / "r.yml", models / "out")]
    if (place, make) == ("companion", directory):
        assert [done.status for done in ways] == [0, 0]
        return
    for done in ways:
        assert (done.status, done.stdout) == (status, "")
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
        assert name.split("/")[-1] in done.stderr
    assert not (models / "out").exists()


@pytest.mark.parametrize("make", SPECIAL, ids=lambda make: make.__name__)
def test_a_manifest_that_is_no_file(models, make):
    """Neither `verify` nor `--overwrite` waits for it, and nothing is removed."""
    assert run_cli("merge", models / "r.yml", models / "out", "--no-sync").status == 0
    (models / "out" / "warpmerge.json").unlink()
    before = contents(models / "out")
    make(models / "out" / "warpmerge.json")
    for done in [
        run_cli("verify", models / "out"),
        run_cli("merge", models / "r.yml", models / "out", "--overwrite", "--dry-run"),
        run_cli("merge", models / "r.yml", models / "out", "--overwrite"),
    ]:
        assert (done.status, done.stdout) == (1, "")
        assert done.stderr.startswith("error: ") and "warpmerge.json" in done.stderr
    remove(models / "out" / "warpmerge.json")
    assert contents(models / "out") == before


@pytest.mark.parametrize("make", SPECIAL, ids=lambda make: make.__name__)
def test_a_journal_that_is_no_file_is_no_journal(models, make):
    (models / "out" / STAGING).mkdir(parents=True)
    make(models / "out" / STAGING / JOURNAL)
    done = run_cli("merge", models / "r.yml", models / "out", "--resume", "--no-sync")
    assert (done.status, done.stderr) == (0, "")
    assert not (models / "out" / STAGING).exists()


@pytest.mark.parametrize("make", SPECIAL, ids=lambda make: make.__name__)
def test_a_model_that_is_no_directory(models, make):
    make(models / "c")
    recipe = {"merge_method": "linear", "models": [str(models / "c")], "parameters": {"weight": 1}}
    done = run_cli("plan", write_recipe(models / "c.yml", recipe))
    assert done.status in (1, 2) and done.stderr.startswith("error: ") and str(models / "c") in done.stderr


@pytest.mark.parametrize("make", SPECIAL, ids=lambda make: make.__name__)
def test_a_header_is_read_from_files_only(tmp_path, make):
    path = tmp_path / SINGLE
    make(path)
    with pytest.raises(ValueError, match=SINGLE):
        Shard(path)
