"""The `elect_and_sum` kernel against its definition, one element at a time, and its exact properties."""

import bit_oracles
import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_helpers import ALL_DTYPES, ISAS, assert_same_bits, family, operands, output, pool, signed, weights, work
from warpmerge import _core

COUNT = 1031  # two stages and a rest
ALL, NONE = _core.Mask(), _core.Mask(2**63)


def combine(tensors, base, value, *, keep=None, vote=None, divisor=None, factor=1.0, elect=True, isa=ISAS[0], out=None):
    result = torch.full(base.shape, 123.0, dtype=out or base.dtype)
    models = len(tensors)
    item = pool(isa).elect_and_sum(
        operands(tensors, base, 1),
        512,
        value,
        vote or value,
        divisor or [0.0] * models,
        factor,
        elect,
        keep or [ALL] * models,
        output(result),
    )
    work(pool(isa), item)
    return result


def element(d, base, value, vote, divisor, factor, elect, kind):
    """One element, one operation after the other, each rounded once to the compute type."""
    votes = total = by = kind(0)
    if elect:
        for k, delta in enumerate(d):
            votes = votes + kind(vote[k]) * delta
    for k, delta in enumerate(d):
        mine = kind(vote[k]) * delta
        if not elect or (mine > 0 if votes >= 0 else mine < 0):
            total = total + kind(value[k]) * delta
            by = by + (kind(divisor[k]) if elect else kind(0))
        else:
            total = total + kind(0)
    merged = total / (by if by != 0 else kind(1)) * kind(factor)
    return base if merged == 0 else base + merged


def by_element(tensors, base, value, vote, divisor, factor, elect, masks=None):
    kind = oracles.compute_type([*tensors, base])
    d = oracles.deltas(tensors, base)
    if masks is not None:
        d = [np.where(m, v, kind(0)) for v, m in zip(d, masks, strict=True)]
    origin = oracles.exact(base).astype(kind)
    rows = zip(*d, strict=True)
    values = [element(row, o, value, vote, divisor, factor, elect, kind) for row, o in zip(rows, origin, strict=True)]
    return torch.from_numpy(np.array(values, dtype=kind))


@pytest.mark.parametrize("elect", [True, False])
@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize("models", [1, 2, 3, 4, 5, 9])
def test_order_and_rounding(models, dtype, elect):
    base, tensors = family(dtype, models, 541, sigma=2e-2)  # a stage and a rest
    vote, divisor = [w * 0.9 for w in signed(models)], [w + 0.1 for w in weights(models)]
    wanted = by_element(tensors, base, signed(models), vote, divisor, 0.7, elect)
    for isa in ISAS:
        got = combine(
            tensors,
            base,
            signed(models),
            vote=vote,
            divisor=divisor,
            factor=0.7,
            elect=elect,
            isa=isa,
            out=wanted.dtype,
        )
        assert_same_bits(got, wanted, isa)


@pytest.mark.parametrize("dtype", ["bf16", "fp32", "fp64"])
def test_keep_rules(dtype):
    """A threshold with ties until an index, a drawn mask, all, none: together in one call."""
    base, tensors = family(dtype, 4, COUNT)
    d = oracles.deltas(tensors, base)
    order = np.argsort(-np.abs(d[0]), kind="stable")
    limit = np.abs(d[0][order[400]])
    threshold = int(limit.view(np.uint64 if d[0].itemsize == 8 else np.uint32))
    ties = np.flatnonzero(np.abs(d[0]) == limit)
    above = np.abs(d[0]) > limit
    # An end behind, on and before each tie; in the middle of a stage and on its border.
    for tie_end in [0, 1, 511, 512, 513, COUNT, *(int(t) + e for t in ties for e in (0, 1))]:
        masks = [
            above | ((np.abs(d[0]) == limit) & (np.arange(COUNT) < tie_end)),
            bit_oracles.lanes(0x0123456789ABCDEF, COUNT) < 40000,
            np.ones(COUNT, bool),
            np.zeros(COUNT, bool),
        ]
        keep = [_core.Mask(threshold, tie_end), _core.Mask.drawn(0x0123456789ABCDEF, 40000), ALL, NONE]
        kept = [torch.from_numpy(np.where(m, v, 0)) for v, m in zip(d, masks, strict=True)]
        zero = torch.zeros(COUNT, dtype=kept[0].dtype)
        wanted = combine(kept, zero, [1.0, 2.0, 4.0, 8.0], elect=False)
        for isa in ISAS:
            got = combine([torch.from_numpy(v) for v in d], zero, [1.0, 2.0, 4.0, 8.0], keep=keep, elect=False, isa=isa)
            assert_same_bits(got, wanted, (tie_end, isa))


small = st.integers(-3, 3)
tables = st.lists(st.lists(small, min_size=4, max_size=4), min_size=1, max_size=40)


def columns(rows):
    return [c.contiguous() for c in torch.tensor(rows, dtype=torch.float32).unbind(1)]


@given(rows=tables, models=st.integers(1, 4), isa=st.sampled_from(ISAS))
@settings(deadline=None, max_examples=150)
def test_the_majority_of_signs_wins(rows, models, isa):
    """Equal weights: the result has the sign of the sum, plus for 0, and is the sum of those with that sign."""
    tensors = columns(rows)[:models]
    got = combine(tensors, torch.zeros(len(rows)), [1.0] * models, isa=isa)
    for row, y in zip(rows, got.tolist(), strict=True):
        votes = sum(row[:models])
        assert y == sum(v for v in row[:models] if (v > 0 if votes >= 0 else v < 0))


@given(rows=tables, order=st.permutations(range(4)), elect=st.booleans())
@settings(deadline=None, max_examples=150)
def test_models_permute_where_sums_are_exact(rows, order, elect):
    tensors, base = columns(rows), torch.full((len(rows),), 0.5)
    value, divisor = [1.0, 0.5, 2.0, 4.0], [1.0, 1.0, 2.0, 0.5]
    first = combine(tensors, base, value, divisor=divisor, elect=elect)
    chosen = ([r[i] for i in order] for r in (tensors, value, divisor))
    moved, value, divisor = chosen
    assert torch.equal(first, combine(moved, base, value, divisor=divisor, elect=elect))


@given(rows=tables, scale=st.sampled_from([-1.0, 2.0, -0.5]))
@settings(deadline=None, max_examples=100)
def test_scaling_by_powers_of_two(rows, scale):
    """Deltas times a power of two: the result times it, except that a vote of zero always elects plus."""
    tensors, zero = columns(rows), torch.zeros(len(rows))
    decided = torch.tensor(rows).sum(1) != 0
    first = combine(tensors, zero, [1.0] * 4, divisor=[1.0] * 4)
    second = combine([t * scale for t in tensors], zero, [1.0] * 4, divisor=[1.0] * 4)
    assert torch.equal((first * scale)[decided], second[decided])


strange = st.sampled_from([0.0, -0.0, 1e-45, -1e-45, 1.1754942e-38, 3.4e38, -1.0, 0.1])
vectors = st.lists(strange | st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40)


@given(
    values=vectors,
    models=st.integers(1, 6),
    elect=st.booleans(),
    keep=st.sampled_from([ALL, NONE, _core.Mask(1), _core.Mask.drawn(7, 30000)]),
    isa=st.sampled_from(ISAS),
)
@settings(deadline=None, max_examples=200)
def test_what_no_model_changes_stays(values, models, elect, keep, isa):
    base = torch.tensor(values, dtype=torch.float32)
    tensors = [base.clone() for _ in range(models)]
    options = {"keep": [keep] * models, "divisor": weights(models), "factor": -1.3, "elect": elect}
    assert_same_bits(combine(tensors, base, signed(models), isa=isa, **options), base)


@given(values=vectors, models=st.integers(1, 6), elect=st.booleans(), nothing=st.sampled_from(["keep", "factor"]))
@settings(deadline=None, max_examples=100)
def test_nothing_kept_or_a_factor_of_zero_gives_the_base(values, models, elect, nothing):
    base = torch.tensor(values, dtype=torch.float32).clamp(-1e30, 1e30)  # zero times an overflow is NaN
    tensors = [base.flip(0) / (k + 2) for k in range(models)]
    options = {"keep": [NONE] * models} if nothing == "keep" else {"factor": 0.0}
    assert_same_bits(combine(tensors, base, signed(models), elect=elect, **options), base)


def test_deltas_that_cancel_leave_the_base():
    """-0 + (1 - 1) would be 0."""
    base = torch.tensor([-0.0, 1.0])
    got = combine([base + 1, base - 1], base, [1.0, 1.0], elect=False)
    assert_same_bits(got, base)
