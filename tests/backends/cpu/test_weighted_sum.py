"""The `weighted_sum` kernel: one or several outputs from one read, with the bits that the rules for numbers fix."""

import bit_oracles
import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_helpers import (
    ALL_DTYPES,
    DTYPES,
    ISAS,
    assert_same_bits,
    bits,
    family,
    native_file,
    operands,
    output,
    pool,
    signed,
    weights,
    work,
)
from native_pool import Place

COUNT = 1031  # two stages and a rest


def combine(tensors, rows, *, base=None, agree=False, out=None, isa=ISAS[0], threads=2, tile=512, policy=1):
    """One output per row of coefficients, and the item."""
    results = [torch.full(tensors[0].shape, 123.0, dtype=out or tensors[0].dtype) for _ in rows]
    flat = [c for row in rows for c in row]
    run = pool(isa, threads)
    item = run.weighted_sum(operands(tensors, base, policy), tile, flat, agree, [output(r) for r in results])
    work(run, item)
    return results, item


def in_order(tensors, coefficients, base=None):
    """The sum as the rules have it: models in order, every operation rounded once to the compute type."""
    kind = oracles.compute_type([*tensors, *([base] if base is not None else [])])
    values = [oracles.exact(t).astype(kind) for t in tensors]
    if base is not None:
        origin = oracles.exact(base).astype(kind)
        values = [v - origin for v in values]
    total = kind(coefficients[0]) * values[0]
    for c, v in zip(coefficients[1:], values[1:], strict=True):
        total = total + kind(c) * v
    return torch.from_numpy(total if base is None else np.where(total == 0, origin, origin + total))


@pytest.mark.parametrize("on_deltas", [False, True])
@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize("models", [1, 2, 3, 4, 5, 9])
def test_order_and_rounding(models, dtype, on_deltas):
    base, tensors = family(dtype, models, COUNT)
    base = base if on_deltas else None
    exactly = in_order(tensors, signed(models), base)
    for isa in ISAS:
        (got,), _ = combine(tensors, [signed(models)], base=base, isa=isa, out=exactly.dtype)
        assert_same_bits(got, exactly, isa)


@pytest.mark.parametrize("on_deltas", [False, True])
@pytest.mark.parametrize("models", [1, 3, 4, 6])
@pytest.mark.parametrize("dtype", ["bf16", "fp32", "fp64"])
def test_several_outputs_are_those_of_several_runs(dtype, models, on_deltas):
    base, tensors = family(dtype, models, COUNT)
    base = base if on_deltas else None
    rows = [weights(models), signed(models), [0.0] * models, [1.0] + [0.0] * (models - 1), [3.7] * models]
    for isa in ISAS:
        together, _ = combine(tensors, rows, base=base, isa=isa)
        for row, got in zip(rows, together, strict=True):
            assert_same_bits(got, combine(tensors, [row], base=base, isa=isa)[0][0], row)
    expected = oracles.task_arithmetic(tensors, base, weight=rows[1]) if on_deltas else None
    oracles.assert_accurate(together[1], expected or oracles.linear(tensors, weight=rows[1], normalize=False))
    if not on_deltas:
        assert torch.equal(together[3], tensors[0])


def test_several_outputs_to_files(tmp_path):
    """Each output has its own digest, tile by tile of what its file holds."""
    tensors = family("bf16", 2, COUNT)[1]
    rows = [weights(2), signed(2), [0.5, 0.5]]
    in_memory, _ = combine(tensors, rows)
    for tile in (512, 1024, 131072):
        with open(tmp_path / "out", "w+b") as file:
            outputs = [Place(2, 100 + 4096 * m, native_file(file)) for m in range(3)]
            item = pool(ISAS[0]).weighted_sum(operands(tensors), tile, [c for row in rows for c in row], False, outputs)
            work(pool(ISAS[0]), item)
            for m, tensor in enumerate(in_memory):
                file.seek(100 + 4096 * m)
                assert file.read(2 * COUNT) == bits(tensor).tobytes()
                assert item.digests[m] == bit_oracles.digest(bits(tensor).tobytes())


def test_nothing_to_do():
    results, item = combine([torch.empty(0), torch.empty(0)], [[1.0, 2.0]])
    assert results[0].numel() == 0
    assert list(item.nonfinite) == [0, 0, 0, 0]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("models", [1, 3, 4, 7])
def test_counts_what_is_not_finite(models, isa):
    base, tensors = family("fp16", models, COUNT)
    for k, tensor in enumerate([*tensors, base]):
        tensor[100 : 101 + k] = float("nan")
        tensor[1030] = float("inf")
    _, item = combine(tensors, [weights(models)], base=base, isa=isa)
    assert list(item.nonfinite) == [*(k + 2 for k in range(models + 1)), 0]


# --- exact rules ----------------------------------------------------------------------------------------------------

STRANGE = [0.0, -0.0, 1e-45, -1e-45, 1.1754942e-38, 3.4e38, -1.0, 0.1, 1 / 3]
numbers = st.sampled_from(STRANGE) | st.floats(width=32, allow_nan=False, allow_infinity=False)
vectors = st.lists(numbers, min_size=1, max_size=40)
coefficient = st.floats(-4, 4, allow_nan=False)


@given(values=vectors, given_weights=st.lists(coefficient, min_size=1, max_size=6), isa=st.sampled_from(ISAS))
@settings(deadline=None, max_examples=150)
def test_a_mean_of_equal_values_is_the_value(values, given_weights, isa):
    tensor = torch.tensor(values, dtype=torch.float32)
    (got,), _ = combine([tensor] * len(given_weights), [given_weights], agree=True, isa=isa)
    assert_same_bits(got, tensor)


@given(values=vectors, given_weights=st.lists(coefficient, min_size=1, max_size=6), isa=st.sampled_from(ISAS))
@settings(deadline=None, max_examples=150)
def test_what_no_model_changes_stays(values, given_weights, isa):
    """-0 and subnormals included: adding a delta of zero would turn -0 into 0."""
    tensor = torch.tensor(values, dtype=torch.float32)
    (got,), _ = combine([tensor.clone() for _ in given_weights], [given_weights], base=tensor, isa=isa)
    assert_same_bits(got, tensor)


@given(values=vectors, on_deltas=st.booleans())
@settings(deadline=None, max_examples=100)
def test_coefficients_of_zero_give_the_base(values, on_deltas):
    base = torch.tensor(values, dtype=torch.float32)
    tensors = [base.flip(0) / 2, base / 4]
    got, _ = combine(tensors, [[0.0, 0.0], [0.0, -0.0]], base=base)
    for result in got:
        assert_same_bits(result, base)


@given(
    x=st.lists(st.tuples(numbers, numbers), min_size=1, max_size=40),
    pair=st.tuples(coefficient, coefficient),
    on_deltas=st.booleans(),
)
@settings(deadline=None, max_examples=150)
def test_two_models_commute(x, pair, on_deltas):
    a, b = torch.tensor(x, dtype=torch.float32).unbind(1)
    a, b, base = a.contiguous(), b.contiguous(), torch.ones(len(x)) if on_deltas else None
    first = combine([a, b], [pair], base=base)[0][0]
    second = combine([b, a], [pair[::-1]], base=base)[0][0]
    assert_same_bits(first, second)


@given(
    rows=st.lists(st.lists(st.integers(-1000, 1000), min_size=5, max_size=5), min_size=1, max_size=30),
    order=st.permutations(range(5)),
    on_deltas=st.booleans(),
)
@settings(deadline=None, max_examples=100)
def test_models_permute_where_sums_are_exact(rows, order, on_deltas):
    """Small integers with weights that are powers of two: no rounding, so no order."""
    tensors = [t.contiguous() for t in torch.tensor(rows, dtype=torch.float32).unbind(1)]
    given_weights = [1.0, 0.5, -2.0, 4.0, 0.25]
    base = torch.full_like(tensors[0], 7.0) if on_deltas else None
    first = combine(tensors, [given_weights], base=base)[0][0]
    second = combine([tensors[i] for i in order], [[given_weights[i] for i in order]], base=base)[0][0]
    assert torch.equal(first, second)


@pytest.mark.parametrize("dtype", DTYPES)
def test_tiles_and_threads(dtype):
    base, tensors = family(dtype, 5, 9001)
    wanted = combine(tensors, [weights(5)], base=base, tile=131072, threads=1)[0][0]
    for tile in (512, 1024, 4096, 8192):
        for threads in (1, 2):
            got = combine(tensors, [weights(5)], base=base, tile=tile, threads=threads)[0][0]
            assert_same_bits(got, wanted, (tile, threads))
