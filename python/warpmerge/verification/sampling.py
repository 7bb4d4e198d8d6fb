"""Tensors chosen at random: so many of them, or a share of their bytes. A seed repeats the choice."""

from __future__ import annotations

import random
import secrets
from collections.abc import Sequence
from typing import TypeVar

from ..errors import UsageError, shown

ALL = "all"
T = TypeVar("T")


def chosen_seed(seed: int | None) -> int:
    """The seed, or a new one. Raises UsageError for what is none."""
    if seed is None:
        return secrets.randbelow(1 << 32)
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise UsageError(f"seed must be an integer, got {shown(seed)}.")
    return seed


def parse_count(value: int | str, name: str) -> int | None:
    """A number of tensors; None: all. Raises UsageError, whose message begins with `name`."""
    if value == ALL:
        return None
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 19:
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UsageError(f"{name}: {shown(value)} is not a number of tensors; write for example 10, or {ALL}.")
    return value


def some(items: Sequence[T], count: int | None, seed: int) -> list[T]:
    """So many of the items, in their order; None: all."""
    if count is None or count >= len(items):
        return list(items)
    return [items[place] for place in sorted(random.Random(seed).sample(range(len(items)), count))]


def share_of(sizes: Sequence[int], share: float, seed: int) -> list[int]:
    """Places of items that have together this share of all bytes, or a little more; with a share of 1 all of them."""
    places = list(range(len(sizes)))
    if share == 1:
        return places
    random.Random(seed).shuffle(places)
    wanted, taken = share * sum(sizes), 0
    for number, place in enumerate(places):
        if taken >= wanted:
            return sorted(places[:number])
        taken += sizes[place]
    return sorted(places)
