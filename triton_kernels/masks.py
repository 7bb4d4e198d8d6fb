"""Masks: top-k masks of csrc/ops/masks.h, and random masks from the random numbers of csrc/ops/philox.h.

A mask is three numbers and a key in the launch table, so one compiled kernel serves all masks. A negative cut means a
top-k mask. Ties are counted in flat indices of the tensor, which keeps masks independent of chunks. One Philox call
gives the draws of eight elements; a program computes the calls of its own elements.
"""

import triton.language as tl

from .elements import CHUNK, device, magnitude_key, pointer


@device
def lanes16(key, calls):
    """Eight 16-bit lanes of each Philox4x32-10 call with counter (call, 0, 0): (N,) int64 to (8 N,) int32."""
    c0, c1 = calls.to(tl.uint32), (calls >> 32).to(tl.uint32)
    c2, c3 = tl.zeros_like(c0), tl.zeros_like(c0)
    k0, k1 = key.to(tl.uint32), (key >> 32).to(tl.uint32)
    for _ in tl.static_range(10):
        high_a, low_a = tl.umulhi(c0, 0xD2511F53), c0 * 0xD2511F53
        high_b, low_b = tl.umulhi(c2, 0xCD9E8D57), c2 * 0xCD9E8D57
        c0, c1, c2, c3 = high_b ^ c1 ^ k0, low_b, high_a ^ c3 ^ k1, low_a
        k0, k1 = k0 + 0x9E3779B9, k1 + 0xBB67AE85
    words = tl.join(tl.join(c0, c2), tl.join(c1, c3))
    halves = tl.join(words & 0xFFFF, words >> 16)
    return tl.reshape(halves, (8 * calls.shape[0],)).to(tl.int32)


@device
def load_rule(rules, segment, k, begin, MODELS: tl.constexpr, FP64: tl.constexpr):
    """A model's rule for a chunk that begins at flat index `begin`: cut, lowest key kept and where ties end, key."""
    at = pointer(rules, tl.int64) + (segment * MODELS + k) * 4
    # No key is this large, nor overflows when the ties have ended.
    threshold = tl.minimum(tl.load(at + 1), 0x7FFFFFFFFFFFFFFE if FP64 else 0x7FFFFFFE)
    ties = tl.minimum(tl.maximum(tl.load(at + 2) - begin, 0), CHUNK)
    return (
        tl.load(at).to(tl.int32),
        threshold.to(tl.int64 if FP64 else tl.int32),
        ties.to(tl.int32),
        tl.load(at + 3),
    )


@device
def drop(delta, rule, offset, calls, FP64: tl.constexpr):
    """The delta at `offset` in its chunk, 0 where the rule drops it. `calls`: the Philox calls of these elements."""
    cut, threshold, ties, key = rule
    if cut < 0:
        kept = magnitude_key(delta, FP64) >= threshold + (offset >= ties).to(threshold.dtype)
    else:
        kept = lanes16(key, calls) < cut
    return tl.where(kept, delta, 0.0)
