"""Keys of the counter-based generator. A tensor of a model gets the same random numbers on every backend."""

from __future__ import annotations

_MASK = (1 << 64) - 1


def mix64(x: int) -> int:
    """The finaliser of SplitMix64: a bijection of 64-bit integers. csrc/ops/digest.h has it too."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def fnv1a64(text: str) -> int:
    """The 64-bit FNV-1a hash of the UTF-8 bytes."""
    state = 0xCBF29CE484222325
    for byte in text.encode():
        state = ((state ^ byte) * 0x100000001B3) & _MASK
    return state


def stream_key(seed: int, tensor: str, model: int) -> int:
    """Philox key of one model's draws for one output tensor. `model` is the model's ordinal among the merged models."""
    key = mix64((seed + 0x9E3779B97F4A7C15) & _MASK)
    key = mix64(key ^ fnv1a64(tensor))
    return mix64((key + model + 1) & _MASK)
