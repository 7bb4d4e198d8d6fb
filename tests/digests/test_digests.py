"""The bits of every method, as they were recorded: a change of one line says which parameters and inputs it shows in.

`python tests/digests/record.py` records them anew in digests.json, which is to be done when bits change on purpose.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import warpmerge as wm
from digests import dense, whole
from digests.cases import GROUPS, Table
from digests.whole import TABLES, Lines

DIGESTS = Path(__file__).with_name("digests.json")


def groups() -> dict[str, Lines]:
    """What is recorded, by method and group."""
    made: dict[str, Lines] = {}
    for tables, kinds in [(TABLES, GROUPS), (dense.TABLES, {**dense.EXACT_GROUPS, **dense.DENSE_GROUPS})]:
        for method, table in tables.items():
            for group, lines in kinds.items():
                made[f"{method}/{group}"] = _of(lines, method, table)
    return {**made, **whole.GROUPS}


def _of(lines: Callable, method: str, table: Table) -> Lines:
    return lambda: lines(method, table)


def found(group: str) -> dict[str, str]:
    return {f"{group}/{title}": value for title, value in groups()[group]()}


def stored() -> dict[str, str]:
    return json.loads(DIGESTS.read_text(encoding="utf-8"))


def changed(now: Mapping[str, str], then: Mapping[str, str], same: Callable[[str, str], bool]) -> list[str]:
    """What differs, a line each."""
    lines = [f"{name}: missing" for name in sorted(then.keys() - now.keys())]
    lines += [f"{name}: not recorded" for name in sorted(now.keys() - then.keys())]
    return lines + [
        f"{n}: {now[n]}, was {then[n]}" for n in sorted(now.keys() & then.keys()) if not same(now[n], then[n])
    ]


@pytest.fixture(scope="module")
def recorded() -> dict[str, str]:
    return stored()


@pytest.mark.parametrize("group", groups())
def test_bits_are_those_recorded(group, recorded):
    then = {name: value for name, value in recorded.items() if name.startswith(f"{group}/")}
    same = dense.same_sums if "/dense" in group else str.__eq__
    differences = changed(found(group), then, same)
    assert not differences, "\n".join([f"{len(differences)} of {len(then)} differ", *differences])


def test_every_built_in_method_is_covered():
    listed = getattr(wm, "list_methods", None) or wm.methods
    assert {method.name for method in listed() if method.built_in} == {*TABLES, *dense.TABLES}


def test_nothing_else_is_recorded(recorded):
    known = set(groups())
    assert not [name for name in recorded if "/".join(name.split("/")[:2]) not in known]
