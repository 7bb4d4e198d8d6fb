"""Accelerators: what a backend has a faster way for has the bits of the expression that defines it."""

from __future__ import annotations

import gc
import importlib.util
import itertools

import numpy as np
import pytest
import torch
from formula_helpers import KEY, adversarial, assert_same_tensors, carry_out
from kernel_helpers import ISAS, cpu
from warpmerge.expr.formula import Formula
from warpmerge.requests import KEEP_ALL, KEEP_NONE, ElectAndSum, Map, RandomMask, RankMask, TopKMask, WeightedSum

INF, NAN = float("inf"), float("nan")
COLUMNS = 29
COUNT = 11 * COLUMNS
RANKED = RankMask(KEY, 9000.0, 1500.5, COLUMNS)
MASKS = (TopKMask(0x3F000000, 200), RandomMask(KEY, 30_000), RANKED, KEEP_ALL, KEEP_NONE)
WEIGHTS = (1.0, -0.7, 0.3, 0.25, 1.5)


def elections(models):
    """With masks of each kind, votes of each kind, with and without a divisor and an election."""
    w, zero, one = WEIGHTS[:models], (0.0,) * models, (1.0,) * models
    votes = [(one, zero), (w, w), (WEIGHTS[-models:], one), (one, (0.5, *zero[1:]))]
    for masks in ((KEEP_ALL,) * models, MASKS[:models], MASKS[-models:]):
        yield ElectAndSum(w, masks, lambda_=0.9)
        for vote, divisor in votes:
            yield ElectAndSum(w, masks, vote, divisor, -0.9, elect=True)


def sums(models):
    w = WEIGHTS[:models]
    yield from (WeightedSum(w, on_deltas) for on_deltas in (True, False))
    yield WeightedSum((1 / models,) * models, False, agree=True)


REQUESTS = [(k, request) for k in (1, 2, 3, 5) for request in (*elections(k), *sums(k))]


@pytest.fixture
def backends(monkeypatch):
    """Every instruction set, and the CUDA kernels on the emulated device where it was built."""
    monkeypatch.setenv("WARPMERGE_CUDA_EMULATION", "1")
    made = [cpu(isa, 2, 512) for isa in ISAS]
    if importlib.util.find_spec("warpmerge._cuda_emulated"):
        from warpmerge.backends.gpu import cuda

        made.append(cuda.create(threads=2, buffer_bytes=1 << 20))
    yield made
    if len(made) > len(ISAS):
        made[-1].close()
        gc.collect()


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp64", "mixed"])
def test_bits_are_those_of_the_expression(dtype, backends):
    for seed, (models, request) in enumerate(REQUESTS):
        base, tensors = adversarial(dtype, models, COUNT, seed=seed)
        base = base if request.on_deltas else None
        expression = request.as_map(models)
        assert isinstance(expression, Map)
        for backend in backends:
            got, wanted = (carry_out(backend, r, tensors, base) for r in (request, expression))
            assert got[1] == wanted[1]
            assert_same_tensors(got[2], wanted[2], (backend.name, request))


def test_where_votes_cancel_are_zero_or_not_numbers(backends):
    values = torch.tensor([0.0, -0.0, 1.0, -1.0, 2.0, -3.0, 1e-45, INF, -INF, NAN])
    tensors = list(torch.cartesian_prod(values, values, values).T.contiguous())
    base = torch.full_like(tensors[0], 0.25)
    for request in elections(3):
        if RANKED in request.keep:
            continue  # rows do not fit
        for backend in backends:
            got, wanted = (carry_out(backend, r, tensors, base)[2] for r in (request, request.as_map(3)))
            assert_same_tensors(got, wanted, (backend.name, request))


def test_several_outputs_of_one_sum(backends):
    base, tensors = adversarial("fp32", 3, COUNT)
    request = WeightedSum((0.5, 0.25, 0.25, 1.0, -1.0, 0.125), True)
    for backend in backends:
        got, wanted = (carry_out(backend, r, tensors, base, outputs=2)[2] for r in (request, request.as_map(3)))
        assert_same_tensors(got, wanted, backend.name)


def test_the_expression_is_the_definition(backends):
    """Written out for a few elements, by hand."""
    d = [np.array(x) for x in ([3.0, 1.0, -1.0, 0.0], [-1.0, 1.0, 1.0, 0.0], [-1.0, -3.0, 0.0, 0.0])]
    tensors = [torch.from_numpy(x) for x in d]
    base = torch.zeros(4, dtype=torch.float64)
    request = ElectAndSum((0.5, 1.0, 2.0), (KEEP_ALL,) * 3, (1.0,) * 3, (0.5, 1.0, 2.0), 2.0, elect=True)
    # Votes: 1, -1, 0, 0. Those who agree: model 0; model 2; model 1; none.
    wanted = [2 * 0.5 * 3 / 0.5, 2 * 2 * -3 / 2, 2 * 1 * 1 / 1, 0.0]
    for backend, r in itertools.product(backends, (request, request.as_map(3))):
        assert carry_out(backend, r, tensors, base)[2][0].tolist() == wanted


def test_formulas_of_several_values_are_what_their_values_are():
    base, tensors = adversarial("fp32", 3, COUNT)
    both = [request.as_map(3).formula.values[0] for request in list(elections(3))[:2]]
    joint = carry_out(cpu(), Map(Formula(both), True, nan_of=None), tensors, base, outputs=2)[2]
    alone = [carry_out(cpu(), Map(Formula((v,)), True, nan_of=None), tensors, base)[2][0] for v in both]
    assert_same_tensors(joint, alone, "")
