"""What is fixed to the bit, written from its documentation: random numbers, their keys, digests, the order of sums."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

# --- random numbers -------------------------------------------------------------------------------------------------

M64 = 2**64 - 1


def philox(counter: Sequence[Any], key: Sequence[int]) -> list[np.ndarray]:
    """Philox4x32-10 (Salmon et al. 2011): four uint32 words for counters of four words and a key of two."""
    low32 = np.uint64(0xFFFFFFFF)
    c = [np.asarray(w, dtype=np.uint64) for w in counter]
    k = [int(w) for w in key]
    for _ in range(10):
        left, right = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [
            (right >> np.uint64(32)) ^ c[1] ^ np.uint64(k[0]),
            right & low32,
            (left >> np.uint64(32)) ^ c[3] ^ np.uint64(k[1]),
            left & low32,
        ]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return [w.astype(np.uint32) for w in c]


def lanes(key: int, count: int) -> np.ndarray:
    """16 random bits per element: element e takes half-word e % 8, low halves first, of the call e // 8."""
    call = np.arange((count + 7) // 8, dtype=np.uint64)
    words = philox([call & np.uint64(0xFFFFFFFF), call >> np.uint64(32), 0 * call, 0 * call], [key % 2**32, key >> 32])
    return np.stack(words, axis=1).astype("<u4").view("<u2").reshape(-1)[:count]


def mix64(x: int) -> int:
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & M64
    x = (x ^ x >> 27) * 0x94D049BB133111EB & M64
    return x ^ x >> 31


def stream_key(seed: int, name: str, ordinal: int) -> int:
    fnv = 0xCBF29CE484222325
    for byte in name.encode():
        fnv = (fnv ^ byte) * 0x100000001B3 & M64
    return mix64(mix64(mix64(seed + 0x9E3779B97F4A7C15 & M64) ^ fnv) + ordinal + 1 & M64)


def digest(data: bytes) -> int:
    """csrc/ops/digest.h: the sum of one mixed value per little-endian word and of one for the length."""
    padded = data + bytes(-len(data) % 8)
    total = mix64(~len(data) & M64)
    for i in range(0, len(padded), 8):
        total += mix64(int.from_bytes(padded[i : i + 8], "little") + (i // 8 + 1) * 0x9E3779B97F4A7C15 & M64)
    return total & M64


# --- reductions -----------------------------------------------------------------------------------------------------


def fixed_sum(values: np.ndarray) -> float:
    """The documented order: in blocks of 16 rows by 256 lanes the rows, then pairs of lanes, all in the compute type;
    then pairs of blocks in float64."""
    blocks = []
    for start in range(0, values.size, 4096):
        block = np.zeros((16, 256), values.dtype)
        part = values[start : start + 4096]
        block.reshape(-1)[: part.size] = part
        sums = block[0]
        for row in block[1:]:
            sums = sums + row
        while sums.size > 1:
            sums = sums[::2] + sums[1::2]
        blocks.append(float(sums[0]))
    while len(blocks) > 1:
        paired = [a + b for a, b in zip(blocks[::2], blocks[1::2], strict=False)]
        blocks = paired + blocks[len(paired) * 2 :]
    return blocks[0] if blocks else 0.0
