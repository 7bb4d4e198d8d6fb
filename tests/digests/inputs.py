"""Inputs of merges, made of integers: the same numbers with every version of every library.

A family is a base and `MODELS` models of one tensor, as float64 arrays that hold every number exactly. `state_dicts`
rounds the families of one kind to a dtype.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

MODELS = 9
SPECIAL = (np.nan, np.inf, -np.inf)
MIXED = ("bfloat16", "float32", "float16", "bfloat16", "float32", "float16")  # of the inputs, in turn
WIDE = ("bfloat16", "float64", "float16", "float32")
MIXTURES = {"mixed": MIXED, "wide": WIDE}

NAN = {
    "float64": (torch.int64, -(2**51) + 1),
    "float32": (torch.int32, -(2**22) + 1),
    "float16": (torch.int16, -(2**9) + 1),
    "bfloat16": (torch.int16, -(2**6) + 1),
}

Shape = tuple[int, ...]
Numbers = np.ndarray
Family = list[Numbers]  # the base first


def words(stream: int, count: int) -> Numbers:
    """SplitMix64: `count` unsigned integers of 64 bits."""
    x = np.arange(1, count + 1, dtype=np.uint64) + np.uint64(stream << 32)
    x *= np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def bells(stream: int, count: int) -> Numbers:
    """Integers in a bell shape around 0: of 18 bits, with a standard deviation of about 37,800."""
    pieces = words(stream, count).view("<u2").reshape(count, 4).astype(np.int64)
    return pieces.sum(1) - 131070


def whole(stream: int, count: int, most: int) -> Numbers:
    """Integers from -most to most."""
    return (words(stream, count) % np.uint64(2 * most + 1)).astype(np.int64) - most


# --- families -------------------------------------------------------------------------------------------------------


def near(stream: int, count: int) -> Family:
    """Models that differ from the base a little, later ones more."""
    base = bells(stream, count) * 2.0**-16
    return [base, *(base + bells(stream + k, count) * (k * 2.0**-21) for k in range(1, MODELS + 1))]


def scaled(exponent: int) -> Callable[[int, int], Family]:
    """Numbers that have nothing to do with each other, times a power of two."""

    def made(stream: int, count: int) -> Family:
        return [bells(stream + k, count) * 2.0**exponent for k in range(MODELS + 1)]

    return made


def tied(stream: int, count: int) -> Family:
    """Few different numbers, so that magnitudes tie, votes cancel and elements agree."""
    base = whole(stream, count, 1) / 2
    return [base, *(base + whole(stream + k, count, 2) / 4 for k in range(1, MODELS + 1))]


def low_rank(rows: int, columns: int) -> Callable[[int, int], Family]:
    """Matrices that differ from the base by a matrix of rank 2."""

    def made(stream: int, count: int) -> Family:
        family = [whole(stream, count, 4)]
        for k in range(1, MODELS + 1):
            left, right = whole(stream + k, 2 * rows, 3).reshape(rows, 2), whole(stream + k, 2 * columns, 2)
            family.append(family[0] + (left @ right.reshape(2, columns)).reshape(-1))
        return [numbers / 16 for numbers in family]

    return made


def zeros(stream: int, count: int) -> Family:
    """Zeros of either sign."""
    return [np.where(whole(stream + k, count, 1) < 0, -0.0, 0.0) for k in range(MODELS + 1)]


def alike(stream: int, count: int) -> Family:
    """The same in all, zeros of either sign among them."""
    one = np.where(whole(stream, count, 2) == 0, zeros(stream, count)[1], bells(stream + 1, count) * 2.0**-16)
    return [one] * (MODELS + 1)


def same_models(stream: int, count: int) -> Family:
    """Models that are the same, and not the base."""
    base, model = near(stream, count)[:2]
    return [base, *[model] * MODELS]


def opposed(stream: int, count: int) -> Family:
    """Models that lie on both sides of the base, in turn, as far away."""
    base, change = whole(stream, count, 8) / 16, 1 + np.abs(whole(stream + 1, count, 3))
    return [base, *(base + change * (1 if k % 2 else -1) / 8 for k in range(1, MODELS + 1))]


def nonfinite(stream: int, count: int) -> Family:
    """NaN and infinities at places of their own in each model, at one place in two models, and in the base."""
    base, *models = (np.array(numbers) for numbers in near(stream, count))
    for k, model in enumerate(models):
        for i, special in enumerate(SPECIAL):
            model[(17 * k + 7 * i + 3) % count] = special
    for i in range(3):
        models[0][(50 + i) % count], models[1][(50 + i) % count] = SPECIAL[i], SPECIAL[(i + 1) % 3]
        base[(60 + 2 * i) % count] = SPECIAL[i]
    return [base, *models]


def all_nan(stream: int, count: int) -> Family:
    """The same in all, and not finite."""
    one = alike(stream, count)[0].copy()
    one[1::5], one[2::7], one[3::11] = SPECIAL
    return [one] * (MODELS + 1)


# --- state dicts ----------------------------------------------------------------------------------------------------


# What tensors of a model are made of, by kind and name.
KINDS: dict[str, dict[str, tuple[Callable[[int, int], Family], Shape]]] = {
    "plain": {
        "model.embed_tokens.weight": (near, (19, 8)),
        "model.layers.0.mlp.weight": (near, (37, 53)),
        "model.layers.0.attn.weight": (scaled(-17), (24, 40)),
        "model.layers.0.norm.weight": (near, (211,)),
        "model.layers.1.conv.weight": (near, (3, 5, 7)),
        "model.layers.1.column.weight": (near, (6, 1)),
        "model.scale": (near, (1,)),
        "model.shift": (scaled(-16), ()),
        "model.empty": (near, (0, 53)),
    },
    "tied": {
        "model.layers.0.tied.weight": (tied, (41, 27)),
        "model.layers.0.tied.bias": (tied, (300,)),
        "model.layers.0.opposed.weight": (opposed, (13, 29)),
        "model.layers.1.same.weight": (same_models, (13, 29)),
        "model.layers.1.alike.weight": (alike, (13, 29)),
        "model.zeros.weight": (zeros, (13, 29)),
    },
    "few": {
        "model.layers.0.mlp.weight": (near, (37, 53)),
        "model.layers.0.norm.weight": (scaled(-20), (211,)),
        "model.empty": (near, (0, 53)),
    },
    "few tied": {"model.tied.weight": (tied, (41, 27)), "model.tied.bias": (tied, (300,))},
    "same": {"model.same.weight": (all_nan, (13, 29)), "model.norm.weight": (near, (29,))},
    "steep": {"model.steep.weight": (scaled(-10), (23, 31)), "model.steep.bias": (scaled(-9), (101,))},
    "faint": {"model.faint.weight": (scaled(-145), (23, 31)), "model.faint.bias": (scaled(-145), (101,))},
    "vast": {"model.vast.weight": (scaled(452), (23, 31)), "model.slight.weight": (scaled(-490), (23, 31))},
    "nonfinite": {"model.odd.weight": (nonfinite, (23, 31)), "model.odd.bias": (nonfinite, (101,))},
    "flat": {
        "model.layers.0.norm.weight": (near, (211,)),
        "model.layers.1.conv.weight": (near, (3, 5, 7)),
        "model.scale": (near, (1,)),
        "model.shift": (scaled(-16), ()),
        "model.tied.bias": (tied, (300,)),
    },
    "flat odd": {"model.odd.bias": (nonfinite, (101,))},
    "matrices": {
        "model.alike.weight": (alike, (9, 12)),
        "model.far.weight": (scaled(-17), (10, 11)),
        "model.low.weight": (low_rank(9, 12), (9, 12)),
        "model.row.weight": (near, (1, 6)),
        "model.square.weight": (near, (12, 12)),
        "model.tall.weight": (near, (40, 7)),
        "model.wide.weight": (near, (7, 40)),
    },
    "matrices odd": {"model.odd.weight": (nonfinite, (11, 13))},
    "matrices large": {"model.large.weight": (near, (3, 20_001))},
    "large": {"model.large.weight": (near, (3, 50_001)), "model.large.bias": (tied, (140_003,))},
}


@functools.cache
def families(kind: str) -> dict[str, tuple[Shape, Family]]:
    """The tensors of a kind by name; a name's numbers do not depend on which others there are."""
    made = {}
    for name, (make, shape) in KINDS[kind].items():
        stream = zlib.crc32(f"{kind} {name}".encode()) >> 8 << 6
        made[name] = shape, make(stream, int(np.prod(shape)))
    return made


def dtypes_of(dtype: str) -> Iterator[str]:
    """Of the inputs in their order, a base first."""
    while True:
        yield from MIXTURES.get(dtype, (dtype,))


@functools.cache
def state_dicts(kind: str, dtype: str, has_base: bool) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """The base, if there is to be one, and the models. Integer tensors go with the floats; the base has its own."""
    numbers = range(0 if has_base else 1, MODELS + 1)
    made = [_state_dict(kind, k, each) for k, each in zip(numbers, dtypes_of(dtype), strict=False)]
    return (made[0], made[1:]) if has_base else (None, made)


def _state_dict(kind: str, number: int, dtype: str) -> dict[str, Any]:
    made = {name: rounded(family[number].reshape(shape), dtype) for name, (shape, family) in families(kind).items()}
    first = 20 if number else 10
    return {**made, "model.steps": torch.arange(first, first + 3), "model.flag": torch.tensor([number > 0])}


def rounded(numbers: Numbers, dtype: str) -> torch.Tensor:
    """All NaN of it are one, negative and with a payload: which one torch makes depends on the processor."""
    made = torch.from_numpy(numbers).to(getattr(torch, dtype))
    bits, pattern = NAN[dtype]
    made.view(bits)[made.isnan()] = pattern
    return made


# --- companions -----------------------------------------------------------------------------------------------------


@functools.cache
def fishers(kind: str, dtype: str, models: int) -> list[dict[str, Any]]:
    """A Fisher information for each weight and model: some zeros in all models, and some below zero."""
    made = []
    for k in range(models):
        tensors = {}
        for name, (shape, family) in families(kind).items():
            count = family[0].size
            values, places = np.abs(bells(900_000 + k, count)) * 2.0**-20, np.arange(count)
            values = np.where(places % 7 == 0, 0.0, np.where(places % 11 == k, -1.0, values))
            tensors[name] = torch.from_numpy(values.reshape(shape)).to(companion_dtype(dtype))
        made.append(tensors)
    return made


@functools.cache
def grams(kind: str, dtype: str, models: int) -> list[dict[str, Any]]:
    """X^T X of small integers, so exact, for each matrix."""
    made: list[dict[str, Any]] = [{} for _ in range(models)]
    for name, (shape, _) in families(kind).items():
        if len(shape) != 2 or 0 in shape:
            continue
        for k, tensors in enumerate(made):
            x = whole(950_000 + k, (shape[1] + 5) * shape[1], 3).reshape(-1, shape[1])
            tensors[name] = torch.from_numpy((x.T @ x).astype(np.float64)).to(companion_dtype(dtype))
    return made


def companion_dtype(dtype: str) -> torch.dtype:
    return torch.float32 if dtype in MIXTURES else getattr(torch, dtype)
