"""The rule that keeps by rank: its masks, its sums, and decisions that are the same wherever they are made."""

import bit_oracles
import numpy as np
import oracles
import pytest
import torch
from formula_helpers import KEY, adversarial, assert_same_tensors, carry_out
from kernel_helpers import (
    ALL_DTYPES,
    CONFIGURATIONS,
    ISAS,
    assert_same_bits,
    cpu,
    family,
    operands,
    output,
    pool,
    reference,
    task,
    work,
)
from test_equality_adversarial import DELTAS
from warpmerge import _core
from warpmerge.backends.gpu.lowering import Lowering, lifted
from warpmerge.errors import MergeError
from warpmerge.expr.expression import delta, masked
from warpmerge.expr.patterns import KeptMagnitudes
from warpmerge.requests import KEEP_ALL, KEEP_NONE, ElectAndSum, RandomMask, RankMask, Reduce, TopKMask

SMALL_TILES = [(isa, 2, 512) for isa in ISAS]
# Low cut and the last one: a usual window, none, all ranks, beyond both ends, so narrow that many ranks share a cut.
RAMPS = [(0.35, 0.65), (0.5, 0.5), (1e-5, 1.0), (-2.0, 3.0), (0.4, 0.4003)]


def ranked(columns, low, high, key=KEY):
    return RankMask(key, low * 65536, (high - low) * 65536 / max(1, columns - 1), columns)


def mask(d, rule):
    """Of flat float deltas: ranks by sorting, cuts one operation after the other."""
    kind = d.dtype.type
    rows = np.abs(d).reshape(-1, rule.columns)
    order = np.argsort(rows, axis=1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(rule.columns)[None], axis=1)
    cuts = np.clip(np.rint(kind(rule.low) + ranks.astype(kind) * kind(rule.step)), 1, 65535)
    return bit_oracles.lanes(rule.key, d.size) < cuts.reshape(-1)


def compare(tensors, base, rules, configurations=SMALL_TILES, **options):
    """The reference's sums and its result, which those of the CPU are compared with."""
    models = len(tensors)
    requests = [
        Reduce("sum", KeptMagnitudes(rules)),
        ElectAndSum((0.5,) * models, rules),
        ElectAndSum((0.5,) * models, rules, (0.5,) * models, (0.5,) * models, elect=True),
    ]
    for request in requests:
        wanted = carry_out(reference(), request, tensors, base, **options)
        for configuration in configurations:
            got = carry_out(cpu(*configuration), request, tensors, base, **options)
            if isinstance(request, Reduce):
                assert got[:2] == wanted[:2], configuration
            else:
                assert_same_tensors(got[2], wanted[2], configuration)


@pytest.mark.parametrize("columns", [1, 2, 3, 15, 16, 17, 63, 100, 511, 512, 896, 1000, 2049, 4864, 20_000])
@pytest.mark.parametrize("dtype", ["bf16", "fp32", "fp64"])
def test_every_length_of_rows(dtype, columns):
    rows = 2 if columns > 4000 else min(300, max(3, 5000 // columns))
    base, tensors = family(dtype, 3, rows * columns)
    for k, ramp in enumerate(RAMPS if columns in (16, 896) else RAMPS[:2]):
        rules = (
            ranked(columns, *ramp),
            KEEP_ALL if k % 2 else RandomMask(KEY + 1, 30000),
            ranked(columns, 0.1, 0.9, 7),
        )
        compare(tensors, base, rules, CONFIGURATIONS if columns in (17, 896) and k == 0 else SMALL_TILES)


@pytest.mark.parametrize("columns", [1, 8, 250, 1000])
@pytest.mark.parametrize("dtype", ["bf16", "fp32", "fp64"])
def test_against_a_sort(dtype, columns):
    base, (tensor,) = family(dtype, 1, 4000, sigma=2e-4)
    (d,) = oracles.deltas([tensor], base)
    for ramp in RAMPS:
        rule = ranked(columns, *ramp)
        wanted = np.where(mask(d, rule), d, 0)
        for isa in ISAS:
            zeros = torch.zeros(4000, dtype=torch.float64 if d.itemsize == 8 else torch.float32)
            got, *_ = carry_out(cpu(isa), Reduce("sum", KeptMagnitudes((rule,))), [torch.from_numpy(d)], zeros)
            assert got[1] == bit_oracles.fixed_sum(np.abs(wanted))
            result = carry_out(cpu(isa), ElectAndSum((1.0,), (rule,)), [torch.from_numpy(d)], zeros)[2][0]
            assert np.array_equal(result.numpy(), wanted)


@pytest.mark.parametrize("kind", DELTAS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_distributions(kind, dtype):
    values = kind(4000).to(dtype)
    for columns in (40, 1000, 4000):
        compare([values], torch.zeros_like(values), (ranked(columns, 0.2, 0.8),))


@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize("nonfinite", ["propagate", "base"])
def test_values_that_are_not_finite(dtype, nonfinite):
    """A NaN ranks above all where it propagates."""
    base, tensors = adversarial(dtype, 2, 3000)
    compare(tensors, base, (ranked(1000, 0.35, 0.65), ranked(1000, 0.1, 0.9)), nonfinite=nonfinite)
    compare(tensors, torch.zeros_like(base), (ranked(3000, 0.35, 0.65), ranked(3000, 0.1, 0.9)), nonfinite=nonfinite)


@pytest.mark.parametrize("tile", [512, 4096, 131072])
def test_decisions_serve_the_next_pass(tile):
    """Measured first, the merge takes the decisions that are there; the same without, and of other rules anew."""
    base, tensors = family("bf16", 2, 30 * 896)
    first = [_core.Mask.ranked(KEY, 20000.0, 20.0, 896), _core.Mask.ranked(5, 30000.0, 5.0, 896)]
    other = [_core.Mask.ranked(KEY, 20000.0, 20.0, 896), _core.Mask.ranked(5, 30000.0, 5.5, 896)]

    def merged(shared, keep):
        result = torch.empty_like(base)
        item = pool("", 2).elect_and_sum(
            shared, tile, [0.5, 0.5], [0.5, 0.5], [1.0, 1.0], 1.0, True, keep, output(result)
        )
        work(pool("", 2), item)
        return result

    shared = operands(tensors, base)
    work(pool("", 2), pool("", 2).kept_sums(shared, tile, first))
    for keep in (first, other):
        assert_same_bits(merged(shared, keep), merged(operands(tensors, base), keep))
    assert not torch.equal(merged(shared, first), merged(shared, other))


class Electing:
    """Kernels that have the accelerator."""

    elect_and_sum = None


@pytest.mark.parametrize("dtype", ["bf16", "fp64"])
def test_spelled_in_formulas(dtype):
    """What devices carry out instead: sorted ranks, in a formula."""
    base, tensors = family(dtype, 4, 20 * 896)
    rules = (ranked(896, 0.35, 0.65), KEEP_NONE, TopKMask(0x3A000000, 1000), ranked(896, 0.0, 0.9, 3))
    value = (0.4, 0.1, 0.2, 0.3)
    for request in [
        ElectAndSum(value, rules, lambda_=0.7),
        ElectAndSum(value, rules, value, value, elect=True),
        ElectAndSum(value, rules, (1.0,) * 4, (0.0,) * 4, elect=True),
    ]:
        other = Lowering(Electing).lowered(task("task_arithmetic", tensors, base, weight=1.0)[0], request)
        assert type(other) is not type(request)
        wanted, got = (carry_out(cpu(), r, tensors, base) for r in (request, other))
        assert_same_tensors(got[2], wanted[2], request)


def test_other_requests_are_left_alone():
    request = ElectAndSum((1.0, 1.0), (KEEP_ALL, RandomMask(KEY, 5)))
    base, tensors = family("bf16", 2, 9)
    made, _ = task("task_arithmetic", tensors, base, weight=1.0)
    assert Lowering(Electing).lowered(None, request) is request
    assert Lowering(None).lowered(made, request) != request
    assert lifted(None, request, "an answer") == "an answer"


def test_refused():
    with pytest.raises(MergeError, match="RankMask is for deltas"):
        masked(delta(0) * 2, ranked(5, 0.1, 0.2))
    for step, columns in [(-1.0, 5), (1.0, 0)]:
        with pytest.raises(MergeError, match="a step of at least 0, and columns"):
            RankMask(KEY, 100.0, step, columns)
    base, tensors = family("fp32", 1, 1000)
    for columns in (7, -10, 2000):
        with pytest.raises(ValueError, match="whole rows"):
            pool("").kept_sums(operands(tensors, base), 512, [_core.Mask.ranked(1, 10.0, 1.0, columns)])
