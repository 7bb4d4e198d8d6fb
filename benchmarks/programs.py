"""Formulas that benchmarks measure: their cost is that of their instructions, beyond reading."""

from __future__ import annotations

from warpmerge.expr import expression as f
from warpmerge.expr.expression import Expr


def median(models: int = 3) -> Expr:
    """A median of three, weighted and clipped: 12 instructions."""
    a, b, c = (f.delta(k % models) for k in range(3))
    middle = f.maximum(f.minimum(a, b), f.minimum(f.maximum(a, b), c))
    mixed = middle * 0.7 + a * 0.1 + b * 0.2
    return f.where(abs(mixed) < 1.0, mixed, c)


def chain(models: int = 3) -> Expr:
    """52 instructions."""
    total = median(models)
    for i in range(10):
        total = total * 0.9 + f.maximum(f.delta(i % models), total * (0.1 + i))
    return total
