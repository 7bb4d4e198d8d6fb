"""What tests of output directories share: models, a merge of them in shards, and what an undisturbed one writes."""

import pytest
from helpers import contents, run_cli, write_ties


@pytest.fixture
def models(tmp_path):
    return write_ties(tmp_path)


SHARDED = ("--shard-size", "600", "--no-sync")  # bytes: each of the larger tensors in a shard of its own


def merge(folder, *options, out="out"):
    return run_cli("merge", folder / "r.yml", folder / out, *options)


def expected(folder, *options):
    """What an undisturbed run writes."""
    assert merge(folder, *options, out="undisturbed").status == 0
    return contents(folder / "undisturbed")


FIXTURES = (models,)  # a test file binds it to this name
