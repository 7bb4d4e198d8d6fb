"""Formulas such as methods make them, as kernels get them, for tests of what becomes of them."""

from types import SimpleNamespace

import numpy as np
from warpmerge.expr import library
from warpmerge.expr.expression import (
    add_up,
    base,
    column,
    delta,
    draw,
    exp,
    log,
    masked,
    maximum,
    minimum,
    rank,
    row,
    sqrt,
)
from warpmerge.expr.formula import Formula
from warpmerge.requests import RandomMask, TopKMask

COLUMNS = 1024


def ordered(values, rounds=None):
    """Sorted from the smallest on by a network of neighbours; after fewer rounds only nearly so."""
    found = list(values)
    for i in range(len(found) if rounds is None else rounds):
        for j in range(i % 2, len(found) - 1, 2):
            found[j], found[j + 1] = minimum(found[j], found[j + 1]), maximum(found[j], found[j + 1])
    return found


def middle(d):
    """The mean of all but the smallest and the largest."""
    return add_up(ordered(d)[1:-1]) / (len(d) - 2)


def softmax(d):
    weights = [exp(abs(v) * 3.0) for v in d]
    return add_up([w * v for w, v in zip(weights, d, strict=True)]) / add_up(weights) + log(abs(base()) + 1.0)


def places(d):
    vector = np.linspace(1, 2, COLUMNS)
    return row(vector) * d[0] + column(vector) * d[1] + rank(0) * 1e-9


def drawn(d):
    """DARE and TIES, with a weight for each element that is drawn."""
    kinds = [RandomMask(2**63 + 5, 30_000), TopKMask(0x3B03126F, 12_345)]
    return add_up([masked(v, kinds[k % 2]) for k, v in enumerate(d)]) * (draw(7) * 2.0**-16)


def swept(d):
    """Three weighted sums of the same inputs."""
    return library.weighted_sum(d, [0.1 * k for k in range(3 * len(d))])


EXAMPLES = {
    "weighted_sum": lambda d: library.weighted_sum(d, [1 / len(d)] * len(d)),
    "sweep": swept,
    "median": lambda d: (ordered(d)[len(d) // 2],),
    "middle": lambda d: (middle(d),),
    "softmax": lambda d: (softmax(d),),
    "places": lambda d: (places(d),),
    "drawn": lambda d: (drawn(d),),
    "ratios": lambda d: tuple(v / (sqrt(v * v + 1e-12) + abs(base())) for v in d),
}


def example(name, inputs, fp64=False):
    made = Formula(EXAMPLES[name]([delta(k) for k in range(inputs)]), COLUMNS)
    return SimpleNamespace(program=made.program(inputs, fp64=fp64), address=0)
