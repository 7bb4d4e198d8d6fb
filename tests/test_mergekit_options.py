"""Options of mergekit-yaml: what they come to, and that scripts run unchanged."""

import pytest
import warpmerge as wm
import yaml
from helpers import read_model, run_cli, write_ties
from warpmerge.mergekit_options import FLAGS, VALUES, translated


def test_every_option_means_one_thing():
    for meaning in [*FLAGS.values(), *VALUES.values()]:
        assert sum(map(bool, (meaning.option, meaning.notice, meaning.error))) == 1


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"--cuda": True}, {"device": "cuda"}),
        ({"--gpu-rich": True}, {"device": "cuda:all"}),
        ({"--out-shard-size": "5B"}, {"shard_size": "5GB"}),
        ({"--out-shard-size": "500m"}, {"shard_size": "500MB"}),
        ({"--out-shard-size": "2GB"}, {"shard_size": "2GB"}),
        ({"--random-seed": "7", "--num-threads": "2"}, {"seed": 7, "threads": 2}),
        ({"--verbose": 2}, {}),
    ],
)
def test_what_options_stand_for(given, wanted):
    assert translated(given) == (wanted, [])


def test_options_that_cannot_be_granted():
    for name in ("--no-safe-serialization", "--unsafe-truncate-embeddings"):
        with pytest.raises(wm.UsageError, match=name):
            translated({name: True})
    with pytest.raises(wm.UsageError, match="--random-seed must be a whole number, got 'x'"):
        translated({"--random-seed": "x"})


def test_a_script_runs_unchanged(tmp_path):
    folder = write_ties(tmp_path)
    options = ["--lazy-unpickle", "--allow-crimes", "--copy-tokenizer", "--trust-remote-code", "-vv", "-j", "1"]
    done = run_cli("merge", folder / "r.yml", folder / "out", *options, "--out-shard-size", "5B")
    assert done.status == 0
    notes = done.stderr.splitlines()
    assert [note.split()[1] for note in notes] == options[:4]
    assert notes[3] == "note: --trust-remote-code is not needed: no code of a checkpoint is ever run."
    wm.merge(folder / "r.yml", folder / "plain")
    assert read_model(folder / "out") == read_model(folder / "plain")
    quiet = run_cli("merge", folder / "r.yml", folder / "quiet", *options, "--quiet")
    assert quiet == (0, "", "")


def test_the_help_lists_them_apart():
    shown = run_cli("merge", "--help").stdout
    own, theirs = shown.split("Options of mergekit-yaml")
    assert "--resume" in own and "--lazy-unpickle" not in own
    assert all(name in theirs for name in [*FLAGS, *VALUES])


def test_the_recipe_is_in_the_output(tmp_path):
    folder = write_ties(tmp_path)
    wm.merge(folder / "r.yml", folder / "out")
    recipe = yaml.safe_load((folder / "out" / "mergekit_config.yml").read_text())
    assert recipe == yaml.safe_load((folder / "r.yml").read_text())
    wm.merge(folder / "out" / "mergekit_config.yml", folder / "again")
    assert read_model(folder / "out") == read_model(folder / "again")
