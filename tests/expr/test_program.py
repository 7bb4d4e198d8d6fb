"""Programs: what takes a slot, what is compiled anew, and how a structure that is known is filled."""

from __future__ import annotations

import random

import numpy as np
import pytest
from formula_helpers import random_values
from warpmerge.errors import MergeError
from warpmerge.expr import program as programs
from warpmerge.expr.expression import column, delta, draw, equal, literal, masked, maximum, rank, row, value, where
from warpmerge.expr.formula import Formula
from warpmerge.requests import KEEP_ALL, RankMask, TopKMask

ROWS, COLUMNS = np.arange(3.0), np.arange(4.0)


def written(number, mask, key, rows, columns):
    return masked(delta(0), mask) * number + draw(key) * row(rows) + maximum(delta(1), number) * column(columns) - 0.5


def program(*values, inputs=2, fp64=False, **options):
    return Formula(values, **options).program(inputs, fp64)


@pytest.fixture
def compilations(monkeypatch):
    """What is compiled, with nothing known at first."""
    monkeypatch.setattr(programs, "_kept", type(programs._kept)())
    calls = []
    real = programs.compiled
    monkeypatch.setattr(programs, "compiled", lambda *a: calls.append(a) or real(*a))
    return calls


def test_other_numbers_masks_keys_and_vectors_fill_the_same_structure(compilations):
    first = program(written(2.0, TopKMask(5, 9), 7, ROWS, COLUMNS), columns=4)
    second = program(written(-0.0, KEEP_ALL, 2**63, ROWS + 1, COLUMNS + 1), columns=4)
    assert len(compilations) == 1
    assert first.structure is second.structure
    assert sorted(first.constants) == [0.5, 2.0, 2.0]
    assert sorted(map(str, second.constants)) == ["-0.0", "-0.0", "0.5"]
    assert (second.rules, second.keys) == ((KEEP_ALL,), (2**63,))
    assert {id(v) for v in first.vectors} == {id(ROWS), id(COLUMNS)}
    assert second.by_row == tuple(len(v) == 3 for v in second.vectors)


def test_literals_and_operations_are_structure(compilations):
    first = program(delta(0) * 2 + delta(1))
    assert program(delta(0) * literal(2.0) + delta(1)).structure is first.structure
    others = {
        "another literal": delta(0) * 3 + delta(1),
        "its sign": delta(0) * -2 + delta(1),
        "a slot": delta(0) * 2.0 + delta(1),
        "inputs": delta(1) * 2 + delta(0),
        "an operation": delta(0) * 2 - delta(1),
        "its order": (delta(0) + delta(1)) * 2,
    }
    made = {title: program(other).structure for title, other in others.items()}
    assert len({first.structure, *made.values()}) == len(compilations) == 1 + len(others)


def test_zero_and_minus_zero_are_different_literals():
    zero, minus = (program(delta(0) + literal(x)).constants[0] for x in (0.0, -0.0))
    assert (str(zero), str(minus)) == ("0.0", "-0.0")


def test_a_float_takes_a_slot_for_each_expression_and_a_shared_one_once():
    assert program(delta(0) * 0.5 + delta(1) * 0.5).constants == (0.5, 0.5)
    half = value(0.5)
    shared = program(delta(0) * half + delta(0) * half)
    assert (shared.constants, len(shared.code)) == ((0.5,), 2)
    assert program(where(delta(0), 1, 0) + where(delta(1), 1, 0)).constants.count(1.0) == 1
    assert program(delta(0) * np.float32(0.1)).constants == (float(np.float32(0.1)),)
    assert program(delta(0) * np.int64(3)).constants == (3.0,)
    assert program(delta(0) * True).constants == (1.0,)


def test_which_slots_are_shared_is_structure():
    half, other = value(0.5), value(0.5)
    one, two = program(delta(0) * half + delta(1) * half), program(delta(0) * half + delta(1) * other)
    assert one.structure is not two.structure
    assert (len(one.constants), len(two.constants)) == (1, 2)


def test_equal_parts_are_computed_once():
    made = program(delta(0) * delta(1) + delta(0) * delta(1), equal(delta(0) * delta(1), 0))
    assert len(made.code) == 3


@pytest.mark.parametrize("seed", range(20))
def test_a_known_structure_gives_the_program_that_compiling_gives(seed, monkeypatch):
    known = Formula(random_values(seed, 3, steps=60, outputs=2))
    first = known.program(3, False)
    monkeypatch.setattr(programs, "_kept", type(programs._kept)())
    again = Formula(random_values(seed, 3, steps=60, outputs=2)).program(3, False)
    for name in ("code", "registers", "outputs", "constants", "rules", "keys", "by_row", "columns", "ranked"):
        assert getattr(first, name) == getattr(again, name), name


def test_few_structures_are_kept(monkeypatch):
    monkeypatch.setattr(programs, "_kept", type(programs._kept)())
    monkeypatch.setattr(programs, "MOST_KEPT", 5)
    choose = random.Random(0)
    for _ in range(200):
        number = choose.randrange(9)
        assert program(delta(0) * (100 + number)).constants == (100.0 + number,)
        assert len(programs._kept) <= 5


def test_masks_follow_the_place_of_the_tensor():
    formula = Formula((masked(delta(0), TopKMask(3, 100)) + masked(delta(0), KEEP_ALL),))
    assert set(formula.starting(60).program(1, False).rules) == {TopKMask(3, 40), KEEP_ALL}


def test_a_rank_mask_is_expanded_and_knows_its_rows():
    made = program(masked(delta(0), RankMask(7, 100.0, 2.0, 16)))
    assert (made.ranked, made.columns, made.keys, made.rules) == ((0,), 16, (7,), ())
    assert program(rank(0), columns=8).columns == 8
    with pytest.raises(MergeError, match="RankMask is for deltas"):
        masked(delta(0) * 2, RankMask(7, 100.0, 2.0, 16))


def test_inputs_that_are_not_there():
    with pytest.raises(MergeError, match="names input 2, but there are 2 inputs"):
        program(delta(2))


def test_too_long():
    total = delta(0)
    for _ in range(programs.LONGEST + 1):
        total = total + delta(1)
    with pytest.raises(MergeError, match="longer than"):
        program(total)


def test_an_expression_is_no_condition():
    with pytest.raises(MergeError, match="use where"):
        bool(delta(0) > 1)
