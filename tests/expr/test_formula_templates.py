"""Formulas with places for numbers, rules, keys and vectors: used with some, they are the formula with those in it."""

from __future__ import annotations

import numpy as np
import pytest
from warpmerge.errors import MergeError
from warpmerge.expr import program as programs
from warpmerge.expr.expression import Formula, Given, column, delta, draw, given, kept, maximum, row
from warpmerge.requests import KEEP_ALL, TopKMask

ROWS, COLUMNS = np.arange(3.0), np.arange(4.0)


def written(number, rule, key, rows, columns):
    return kept(delta(0), rule) * number + draw(key) * row(rows) + maximum(delta(1), number) * column(columns) - 0.5


def same(a, b):
    assert (a.code, a.registers, a.outputs, a.constants) == (b.code, b.registers, b.outputs, b.constants)
    assert (a.rules, a.keys, a.by_row, a.columns) == (b.rules, b.keys, b.by_row, b.columns)
    assert all(x is y for x, y in zip(a.vectors, b.vectors, strict=True))


@pytest.mark.parametrize("fp64", [False, True])
def test_places_are_filled(fp64):
    template = Formula((written(given(0), Given(1), Given(2), Given(3), Given(4)),))
    for number, key in ((2.0, 7), (-0.0, 2**63)):
        values = (number, TopKMask(5, 9), key, ROWS, COLUMNS)
        used = template.using(*values, columns=4).program(2, fp64)
        same(used, Formula((written(*values),), columns=4).program(2, fp64))


def test_it_is_compiled_once(monkeypatch):
    calls = []
    real = programs.compiled
    monkeypatch.setattr(programs, "compiled", lambda *a: calls.append(a) or real(*a))
    template = Formula((delta(0) * given(0),))
    for i in range(5):
        assert template.using(float(i)).program(1, False).constants == (float(i),)
    assert len(calls) == 1
    assert template.using(1.0).program(1, False).code is template.using(2.0).program(1, False).code


def test_rules_follow_the_place_of_the_tensor():
    template = Formula((kept(delta(0), Given(0)) + kept(delta(0), KEEP_ALL),))
    rules = template.using(TopKMask(3, 100)).starting(60).program(1, False).rules
    assert rules == (TopKMask(3, 40), KEEP_ALL)


def test_inputs_that_are_not_there():
    with pytest.raises(MergeError, match="names input 2 of 2"):
        Formula((delta(2),)).program(2, False)
