"""A short run of the fuzzers. `make fuzz` is the long one."""

import json
import random
from collections import Counter

import pytest
from fuzz_targets import TARGETS
from hypothesis import given, note, settings
from hypothesis import strategies as st
from mutation import BYTES, NUMBERS, damaged, parsed

INPUTS = {"header": 1500, "index": 600, "config": 100, "manifest": 100, "journal": 100, "recipe": 300}


@pytest.mark.parametrize("name", TARGETS)
def test_hostile_files_are_refused_or_read_right(tmp_path, name):
    target, seen = TARGETS[name](tmp_path), Counter()

    @settings(max_examples=INPUTS[name], deadline=None, database=None, derandomize=True)
    @given(st.randoms(use_true_random=False))
    def check(rng):
        data = target.generate(rng)
        note(data)
        seen[target.check(data)] += 1

    check()
    assert seen["read"] > 0.05 * INPUTS[name]
    assert name == "journal" or seen["refused"] > 0.05 * INPUTS[name]


def test_damage_reaches_structure_spelling_and_bytes():
    """Of 2,000 inputs many are still JSON, many are not, and each kind of change is among them."""
    document = {"a": [1, 2, {"b": "c"}], "d": None}
    made = [damaged(document, random.Random(seed)) for seed in range(2000)]
    assert made == [damaged(document, random.Random(seed)) for seed in range(2000)]
    assert len(set(made)) > 1000
    readable = 0
    for data in made:
        try:
            readable += parsed(data) is not None
        except (ValueError, RecursionError):
            continue
    assert 500 < readable < 1700
    assert json.dumps(document).encode() in made
    for wanted in (*(number.encode() for number in NUMBERS[:20]), *BYTES[2:20]):
        assert any(wanted in data for data in made)
