"""The deltas of some elements of one chunk, for kernels that need all models at once or one at a time.

Each kernel goes over a whole chunk without masks, which lets loads be vectorised, and on the assumption that every
delta is finite. Should the largest magnitude key say otherwise, or the chunk be a partial one, it goes over the chunk
again: masked, counting what is not finite, and settling it by policy.
"""

import triton.language as tl

from .elements import (
    INFINITY32,
    INFINITY64,
    NO_BASE,
    OVERFLOW32,
    OVERFLOW64,
    count_nonfinite,
    device,
    is_finite,
    load,
    magnitude_key,
    settle,
)


@device
def load_addresses(row, FIRST: tl.constexpr, NUMBER: tl.constexpr):
    """So many columns of a table row."""
    addresses = ()
    for k in tl.static_range(NUMBER):
        addresses = addresses + (tl.load(row + FIRST + k),)  # noqa: RUF005 (no unpacking in Triton)
    return addresses


@device
def load_coefficients(at, NUMBER: tl.constexpr, FP64: tl.constexpr):
    """Coefficients, rounded once to the compute type."""
    coefficients = ()
    for k in tl.static_range(NUMBER):
        coefficients = coefficients + (tl.load(at + k).to(tl.float64 if FP64 else tl.float32),)  # noqa: RUF005
    return coefficients


@device
def load_deltas(sources, base_source, begin, offset, length, counters, INPUTS: tl.constexpr, BASE: tl.constexpr,
                FP64: tl.constexpr, TO_ZERO: tl.constexpr, ALIGNED: tl.constexpr, COUNT: tl.constexpr,
                MASKED: tl.constexpr):  # fmt: skip
    """Deltas, base (zeros if there is none) and the largest magnitude key over the models at each element; and, if
    masked, whether all operands of the element are finite."""
    x = ()
    for k in tl.static_range(len(INPUTS)):
        x = x + (load(sources[k], begin, offset, length, INPUTS[k], FP64, ALIGNED, MASKED),)  # noqa: RUF005
    if BASE == NO_BASE:
        base = tl.zeros_like(x[0])
        d = x
    else:
        base = load(base_source, begin, offset, length, BASE, FP64, ALIGNED, MASKED)
        d = ()
        for k in tl.static_range(len(INPUTS)):
            d = d + (x[k] - base,)  # noqa: RUF005
    top = magnitude_key(d[0], FP64)
    for k in tl.static_range(1, len(INPUTS)):
        top = tl.maximum(top, magnitude_key(d[k], FP64))
    sound = top >= 0
    if MASKED:
        sound = is_finite(base, FP64)
        for k in tl.static_range(len(INPUTS)):
            sound = sound & is_finite(x[k], FP64)
        if COUNT:  # noqa: SIM102 (at compile time, unlike what follows)
            if tl.max(top, axis=0) >= (INFINITY64 if FP64 else INFINITY32):
                for k in tl.static_range(len(INPUTS)):
                    count_nonfinite(counters + k, x[k], FP64)
                if BASE != NO_BASE:
                    count_nonfinite(counters + len(INPUTS), base, FP64)
        settled = ()
        for k in tl.static_range(len(INPUTS)):
            settled = settled + (settle(d[k], TO_ZERO, FP64),)  # noqa: RUF005
        d = settled
    return d, base, top, sound


@device
def settle_results(y, base, top, sound, offset, length, counter, BASE: tl.constexpr, OUT: tl.constexpr,
                   FP64: tl.constexpr, TO_ZERO: tl.constexpr, COUNT: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    """Results, and `top`, which is infinity where one is not finite in the output's dtype, so that the chunk is gone
    over again. If masked: counts those of which all operands are finite, and settles them by policy."""
    large = magnitude_key(y, FP64) >= (OVERFLOW64 if FP64 else OVERFLOW32)[OUT]
    if MASKED:
        large = large & (offset < length)
        if COUNT:
            found = tl.sum((large & sound).to(tl.int32), axis=0)
            if found > 0:
                tl.atomic_add(counter, found.to(tl.int64), sem="relaxed")
        if TO_ZERO:  # noqa: SIM102
            if BASE != NO_BASE:
                y = tl.where(large, base, y)
        return y, top
    else:
        return y, tl.maximum(top, tl.where(large, INFINITY64 if FP64 else INFINITY32, 0).to(top.dtype))


@device
def load_delta(source, base_source, begin, offset, length, counters, k, INPUT: tl.constexpr, BASE: tl.constexpr,
               MODELS: tl.constexpr, FP64: tl.constexpr, TO_ZERO: tl.constexpr, ALIGNED: tl.constexpr,
               COUNT: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    """The delta of model `k` alone, and its magnitude keys. The base's elements are counted with model 0."""
    x = load(source, begin, offset, length, INPUT, FP64, ALIGNED, MASKED)
    d = x
    if BASE != NO_BASE:
        base = load(base_source, begin, offset, length, BASE, FP64, ALIGNED, MASKED)
        d = x - base
    top = magnitude_key(d, FP64)
    if MASKED:
        if COUNT:  # noqa: SIM102 (at compile time, unlike what follows)
            if tl.max(top, axis=0) >= (INFINITY64 if FP64 else INFINITY32):
                count_nonfinite(counters + k, x, FP64)
                if BASE != NO_BASE:  # noqa: SIM102
                    if k == 0:
                        count_nonfinite(counters + MODELS, base, FP64)
        d = settle(d, TO_ZERO, FP64)
    return d, top
