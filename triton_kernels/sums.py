"""The order of sums of csrc/ops/reduce.h on the device.

A program holds the lanes of one or several blocks of a chunk side by side, (BLOCKS * 256,), and goes over their 16
rows in turn.
"""

import triton.language as tl

from .elements import BLOCK, LANES, device


@device
def lane_offsets(block, row, BLOCKS: tl.constexpr):
    """Where in the chunk the lanes of a row are, in the blocks from `block` on."""
    lane = tl.arange(0, BLOCKS * LANES)
    return (block + lane // LANES) * BLOCK + row * LANES + lane % LANES


@device
def lane_calls(call, block, row, BLOCKS: tl.constexpr):
    """The Philox calls of these elements, eight each; `call` is the chunk's first."""
    lane = tl.arange(0, BLOCKS * LANES // 8)
    return call + ((block + lane // (LANES // 8)) * (BLOCK // 8) + row * (LANES // 8) + lane % (LANES // 8))


@device
def sum_pairs(x, LEVELS: tl.constexpr):
    """Adds neighbours, so many times over."""
    for _ in tl.static_range(LEVELS):
        x = tl.sum(tl.reshape(x, (x.shape[0] // 2, 2)), axis=1)
    return x


@device
def sum_lanes(x):
    """(BLOCKS * 256,) to (BLOCKS,) float64."""
    return sum_pairs(x, 8).to(tl.float64)


@device
def sum_counts(x, BLOCKS: tl.constexpr):
    """(BLOCKS * 256,) counts to (BLOCKS,)."""
    return tl.sum(tl.reshape(x, (BLOCKS, LANES)), axis=1)
