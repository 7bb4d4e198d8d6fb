"""Choices by a seed, and `verify` of a share of the bytes."""

import json
import random

import numpy as np
import pytest
import warpmerge as wm
from helpers import SINGLE, llama, run_cli, write_model, write_ties
from verify_helpers import FIRST, NORM, edit_manifest, flip
from warpmerge.units import parse_share
from warpmerge.verification.sampling import chosen_seed, parse_count, share_of, some


@pytest.mark.parametrize(
    ("value", "share"), [("5%", 0.05), (" 2.5 % ", 0.025), ("0%", 0), ("100%", 1), (0.25, 0.25), (1, 1), (0, 0)]
)
def test_shares(value, share):
    assert parse_share(value, "sample") == share


@pytest.mark.parametrize(
    "value", ["5", "0.05", "-1%", "101%", "%", "1e1%", "", 1.01, -0.1, float("nan"), True, None, []]
)
def test_what_is_no_share(value):
    with pytest.raises(wm.UsageError, match=r"sample: .* is not a share"):
        parse_share(value, "sample")


@pytest.mark.parametrize("value", ["", "x", "0", "-1", "1.5", "²", "9" * 5000, 0, -1, 1.0, True, None])
def test_what_is_no_number_of_tensors(value):
    with pytest.raises(wm.UsageError, match=r"recompute: .* is not a number of tensors"):
        parse_count(value, "recompute")
    assert parse_count("all", "recompute") is None and parse_count("12", "recompute") == 12


def test_seeds():
    assert chosen_seed(7) == 7
    assert len({chosen_seed(None) for _ in range(4)}) > 1
    for wrong in (1.5, True, "7"):
        with pytest.raises(wm.UsageError, match="seed must be an integer"):
            chosen_seed(wrong)


def test_some():
    items = list("abcdefgh")
    assert some(items, None, 0) == some(items, 8, 0) == some(items, 99, 0) == items
    found = [tuple(some(items, 3, seed)) for seed in range(200)]
    assert all(len(set(f)) == 3 and sorted(f) == list(f) for f in found)
    assert {name for f in found for name in f} == set(items)


def test_a_share_is_reached_with_the_fewest_of_a_random_order():
    rng = random.Random(0)
    for seed in range(200):
        sizes = [rng.choice([0, 1, 10, 1000]) for _ in range(rng.randrange(1, 30))]
        share = rng.choice([0, 0.05, 0.5, 1])
        places = share_of(sizes, share, seed)
        taken = sum(sizes[p] for p in places)
        assert places == sorted(set(places)) and taken >= share * sum(sizes)
        if share == 1:
            assert places == list(range(len(sizes)))
        elif places:  # the last one was needed
            assert taken - max(sizes[p] for p in places) < share * sum(sizes)
    assert share_of([], 0.5, 0) == share_of([0, 0], 0.5, 0) == []


@pytest.fixture
def out(tmp_path):
    write_ties(tmp_path)
    wm.merge(tmp_path / "r.yml", tmp_path / "out")
    return tmp_path / "out"


def test_a_sample_finds_what_it_looks_at(out):
    flip(out / SINGLE, NORM)
    found = {}
    for seed in range(40):
        report = wm.verify(out, sample="30%", seed=seed)
        assert 0.3 * report.nbytes <= report.digests.nbytes < report.nbytes and report.seed == seed
        assert report.digests.nbytes == sum(llama(0)[name].nbytes for name in report.digests.names)
        assert bool(report.problems) is (NORM in report.digests.names)
        found[bool(report.problems)] = report
    assert set(found) == {True, False}
    again = wm.verify(out, sample=0.3, seed=found[True].seed)
    assert again == found[True]


def test_names_shapes_and_dtypes_are_always_compared(out):
    write_model(out, {**llama(0), NORM: np.ones(3, "float32"), "x": np.ones(1)})
    problems = wm.verify(out, sample=0).problems
    assert [p.partition("' ")[2] for p in problems] == [
        "is float32 [3], but float32 [8] in the manifest",
        "is not in the manifest",
    ]


def test_all_is_everything(out):
    report = wm.verify(out)
    assert (
        report.seed is None and len(report.digests.names) == report.tensors and report.digests.nbytes == report.nbytes
    )
    assert set(wm.verify(out, sample="100%").digests.names) == set(report.digests.names)


def test_tensors_without_elements_and_odd_ones(tmp_path):
    """NaN is compared by its bytes."""
    odd = {"nan": np.array([np.nan, np.inf], "float32"), "none": np.zeros((0, 3), "float32"), "zero": np.zeros(4)}
    paths = [str(write_model(tmp_path / name, odd)) for name in "ab"]
    wm.merge({"merge_method": "linear", "models": paths, "parameters": {"weight": 1}}, tmp_path / "out")
    assert wm.verify(tmp_path / "out").problems == ()
    assert set(wm.verify(tmp_path / "out").digests.names) == set(odd)
    flip(tmp_path / "out" / SINGLE, "nan")
    assert wm.verify(tmp_path / "out").problems == ("tensor 'nan' does not have the digest of the manifest",)


def test_the_command_prints_what_was_compared(out):
    done = run_cli("verify", out, "--sample", "20%", "--seed", "3")
    report = wm.verify(out, sample="20%", seed=3)
    share = report.digests.nbytes / report.nbytes
    assert (done.status, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"{out}: 8 tensors, 2.14 kB, names, shapes and dtypes as in the manifest",
        f"digests compared: {len(report.digests.names)} tensor{'s' * (len(report.digests.names) != 1)}, "
        f"{report.digests.nbytes} B ({share:.1%}), as in the manifest",
        *(f"  {name}" for name in report.digests.names),
        "chosen with --seed 3",
    ]
    assert json.loads(run_cli("verify", out, "--sample", "20%", "--seed", "3", "--json").stdout) == report.as_dict()
    assert "--seed" in run_cli("verify", out, "--sample", "20%").stdout


def test_json_of_all(out):
    report = json.loads(run_cli("verify", out, "--json").stdout)
    assert report == {
        "out": str(out),
        "tensors": 8,
        "nbytes": 2144,
        "problems": [],
        "digests": {"tensors": 8, "nbytes": 2144},
        "recomputed": None,
        "seed": None,
    }
    edit_manifest(out, lambda m: m["tensors"].pop(FIRST))
    done = run_cli("verify", out, "--json")
    assert (done.status, json.loads(done.stdout)["problems"]) == (1, [f"tensor '{FIRST}' is not in the manifest"])
