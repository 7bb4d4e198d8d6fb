"""Bytes of tensors, compared."""

from __future__ import annotations

Buffer = bytes | memoryview


def count_differing(a: Buffer, b: Buffer, itemsize: int) -> int:
    """How many elements of `itemsize` bytes differ in some of them. NaN is like any other pattern of bits."""
    import numpy as np

    word = f"u{itemsize}"
    return int(np.count_nonzero(np.frombuffer(a, word) != np.frombuffer(b, word)))
