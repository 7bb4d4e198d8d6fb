"""Keys of the random numbers. A model's tensor gets the same random numbers on every backend.

The generator is counter-based (Philox): the number of an element is a function of a key and the element's index, so
every worker can compute it by itself. docs/numerics.md defines keys and numbers.
"""

from __future__ import annotations

_MASK = (1 << 64) - 1


def mix64(x: int) -> int:
    """The finaliser of SplitMix64, a bijection of 64-bit integers. csrc/ops/digest.h has it too."""
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
    """The key of the random numbers of one tensor of one model, for `draw`, `RandomMask` and `RankMask`.

    Args:
        seed: the merge's seed, such as `TensorInfo.seed`.
        tensor: the tensor's name in the output, or what stands for it: `TensorInfo.stream`.
        model: the model's index among the merged models, from 0. Any other number gives further, independent numbers.

    Returns:
        An integer of 64 bits.

    Example:
        >>> RandomMask(stream_key(tensor.seed, tensor.stream, 0), cut=32768)  # keeps half of the elements of model 0
    """
    key = mix64((seed + 0x9E3779B97F4A7C15) & _MASK)
    key = mix64(key ^ fnv1a64(tensor))
    return mix64((key + model + 1) & _MASK)
