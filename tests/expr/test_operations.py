"""The table of operations is what C++ and Triton have too."""

import re
from pathlib import Path

import pytest
from warpmerge.expr.operations import ARITY, TABLE, Op, header

ROOT = Path(__file__).parents[2]


def test_the_header_is_up_to_date():
    assert (ROOT / "csrc/ops/operations.h").read_text(encoding="utf-8") == header()


def test_numbers_are_places_in_the_table():
    assert [(Op(n).name.lower(), ARITY[n]) for n in range(len(TABLE))] == [(o.name, o.arity) for o in TABLE]


def test_triton_has_the_same_numbers():
    pytest.importorskip("triton")
    text = (ROOT / "triton_kernels/formula.py").read_text(encoding="utf-8")
    assert "operations import Op" in text
    assert not re.search(r"= tl\.constexpr\(\d+\)", text)
