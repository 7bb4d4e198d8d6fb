"""The table of operations is what C++ and Triton have too."""

import re
from pathlib import Path

import pytest
from warpmerge.expr.operations import Op, header

ROOT = Path(__file__).parents[2]


def test_the_header_is_up_to_date():
    assert (ROOT / "csrc/ops/operations.h").read_text(encoding="utf-8") == header()


def test_numbers_count_up_from_0():
    assert [int(op) for op in Op] == list(range(len(Op)))
    assert [op.arity for op in (Op.DRAW, Op.SQRT, Op.ADD, Op.WHERE)] == [0, 1, 2, 3]


def test_triton_has_the_same_numbers():
    pytest.importorskip("triton")
    text = (ROOT / "triton_kernels/formula.py").read_text(encoding="utf-8")
    assert "operations import Op" in text
    assert not re.search(r"= tl\.constexpr\(\d+\)", text)
