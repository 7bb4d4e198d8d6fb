"""Random drops: the generator's known answers, its keys, and the statistics of the masks."""

import itertools
import math

import bit_oracles
import numpy as np
import pytest
import torch
import warpmerge as wm
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_helpers import (
    CONFIGURATIONS,
    ISAS,
    assert_same_bits,
    cpu,
    family,
    merge,
    operands,
    output,
    pool,
    reference,
    work,
)
from warpmerge import _core
from warpmerge.random import stream_key

COUNT = 100_003
SIGMAS = 5  # one run in two million


def masks(models, density, *, name="w", seed=0, count=COUNT):
    """Which elements of each model's delta are kept, read off a merge: deltas of 1 with weights 1, 2, 4, ..."""
    ones = [torch.ones(count)] * models
    merged = wm.merge_tensors(
        ones,
        "dare_linear",
        base=torch.zeros(count),
        weight=[2.0**k for k in range(models)],
        density=density,
        rescale=False,
        name=name,
        seed=seed,
    )
    return [(merged.long() >> k & 1).bool() for k in range(models)]


def kept(key, cut, count, isa=ISAS[0]):
    """The mask of the native module for a key of one's choice."""
    ones, zero, result = torch.ones(count), torch.zeros(count), torch.empty(count)
    keep = [_core.Mask.drawn(key, cut)]
    item = pool(isa).elect_and_sum(operands([ones], zero), 512, [1.0], [1.0], [0.0], 1.0, False, keep, output(result))
    work(pool(isa), item)
    return result.bool().tolist()


# --- known answers --------------------------------------------------------------------------------------------------

ZEROS = [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]  # Random123: counter 0, key 0
ONES = [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]  # all bits set in both


def test_known_answers_of_the_oracle():
    full = 0xFFFFFFFF
    assert [int(w[0]) for w in bit_oracles.philox([np.array([0])] * 4, (0, 0))] == ZEROS
    assert [int(w[0]) for w in bit_oracles.philox([np.array([full])] * 4, (full, full))] == ONES


@pytest.mark.parametrize("isa", ISAS)
def test_known_answers_of_the_kernels(isa):
    """An element is kept iff its 16 bits are below the cut: one step of the cut tells them exactly."""
    lanes = [half for word in ZEROS for half in (word & 0xFFFF, word >> 16)]
    for element, lane in enumerate(lanes):
        assert not kept(0, lane, 8, isa)[element]
        assert kept(0, lane + 1, 8, isa)[element]


@given(key=st.integers(0, 2**64 - 1), cut=st.integers(1, 65535), count=st.integers(1, 2100), isa=st.sampled_from(ISAS))
@settings(deadline=None, max_examples=150)
def test_masks_of_any_key(key, cut, count, isa):
    assert kept(key, cut, count, isa) == (bit_oracles.lanes(key, count) < cut).tolist()


@given(seed=st.integers(0, 2**63 - 1), name=st.text(max_size=30), model=st.integers(0, 100))
@settings(max_examples=100)
def test_keys(seed, name, model):
    assert stream_key(seed, name, model) == bit_oracles.stream_key(seed, name, model)


def test_keys_do_not_collide():
    names = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(100)]
    keys = {stream_key(seed, name, k) for seed in range(10) for name in names for k in range(10)}
    assert len(keys) == 10_000


def test_large_and_negative_seeds_are_distinct():
    keys = {stream_key(seed, "w", 0) for seed in (0, 1, -1, 2**32, 2**63, 2**64 - 2)}
    assert len(keys) == 6


# --- statistics -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("density", [1e-6, 0.001, 0.1, 0.3, 0.5, 0.9, 0.9999999])
def test_keep_rate(density):
    """The realised density is a multiple of 1/65536, at least one and at most all but one."""
    realised = min(65535, max(1, round(density * 65536))) / 65536
    for mask in masks(3, density):
        error = int(mask.sum()) - realised * COUNT
        assert abs(error) <= SIGMAS * math.sqrt(COUNT * realised * (1 - realised))


def agreement(a, b):
    """How far, in standard deviations, two masks of density 1/2 are from agreeing on half of the elements."""
    return (int((a == b).sum()) - a.numel() / 2) / math.sqrt(a.numel() / 4)


def test_models_tensors_and_seeds_are_independent():
    found = masks(4, 0.5, name="a") + masks(4, 0.5, name="b") + masks(4, 0.5, name="a", seed=1)
    assert all(abs(agreement(x, y)) <= SIGMAS for x, y in itertools.combinations(found, 2))


def test_neighbours_are_independent():
    """Within a call of the generator (lanes 1 to 7), between calls, between rows of a matrix."""
    mask = masks(1, 0.5)[0]
    for step in (1, 2, 3, 4, 7, 8, 16, 256, 512, 4096):
        assert abs(agreement(mask[:-step], mask[step:])) <= SIGMAS, step


def test_every_lane_keeps_its_share():
    mask = masks(1, 0.5, count=80_000)[0].view(-1, 8)
    for lane in range(8):
        assert abs(int(mask[:, lane].sum()) - 5000) <= SIGMAS * 50, lane


# --- what the numbers depend on -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_tiles_threads_and_instruction_sets_draw_the_same(method):
    base, tensors = family("bf16", 3, 20_011)
    parameters = {"weight": 1.0, "density": [0.3, 0.7, 0.5], "rescale": False}
    wanted = merge(reference(), method, tensors, base, **parameters)
    for configuration in CONFIGURATIONS:
        assert_same_bits(merge(cpu(*configuration), method, tensors, base, **parameters), wanted, configuration)


def test_masks_depend_on_the_flat_index_alone():
    """Neither on the shape, nor on the dtype, nor on how many models there are."""
    flat = masks(3, 0.4, count=4096)
    ones, zero = torch.ones(16, 4, 64), torch.zeros(16, 4, 64)
    shaped = wm.merge_tensors([ones], "dare_linear", base=zero, weight=1, density=0.4, rescale=False, name="w")
    assert torch.equal(shaped.flatten().bool(), flat[0])
    half = wm.merge_tensors(
        [ones.bfloat16()], "dare_linear", base=zero.double(), weight=1, density=0.4, rescale=False, name="w"
    )
    assert torch.equal(half.flatten().bool(), flat[0])


def test_the_start_of_a_longer_tensor_draws_the_same():
    assert torch.equal(masks(1, 0.5, count=999)[0], masks(1, 0.5, count=5000)[0][:999])


def test_seed_and_name_choose_the_numbers():
    base, tensors = family("fp32", 2, 1031)

    def merged(**options):
        return wm.merge_tensors(tensors, "dare_linear", base=base, weight=1, density=0.5, **options)

    assert_same_bits(merged(seed=1, name="a"), merged(seed=1, name="a"))
    assert not torch.equal(merged(seed=1), merged(seed=2))
    assert not torch.equal(merged(name="a"), merged(name="b"))
    torch.manual_seed(5)
    before = torch.rand(1)
    torch.manual_seed(5)
    merged()
    assert torch.equal(torch.rand(1), before), "a merge drew from torch's global generator"


def test_state_dicts_draw_by_tensor_name():
    base, (tuned,) = family("fp32", 1, 1031)
    given = {"weight": 1, "density": 0.5, "seed": 9}
    merged = wm.merge_state_dicts([{"a": tuned, "b": -tuned}], "dare_linear", base={"a": base, "b": -base}, **given)
    for name, sign in (("a", 1), ("b", -1)):
        alone = wm.merge_tensors([sign * tuned], "dare_linear", base=sign * base, name=name, **given)
        assert_same_bits(merged[name], alone)
    assert not torch.equal(merged["a"], -merged["b"])
