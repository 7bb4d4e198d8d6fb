"""Cases of the methods on matrices, which torch's linear algebra computes.

Its order of summation depends on the machine, the version of torch and the number of threads, so the bits of merged
matrices do too. They are compared by a few sums within a tolerance that is far above rounding; everything else that
these methods make has its bits pinned like that of all others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from digests.cases import ANY, DTYPES, WEIGHTS, Case, Table, Tensors, case, digest_of, merged, numbers_for
from digests.inputs import grams, words

TOLERANCE = 1e-6  # of the sum of magnitudes; float64 algebra rounded to float32 leaves some 1e-9 of it
DENSITIES = (0.3, 1.0, 0.6, 0.8, 0.5, 0.5, 0.5, 0.5, 0.5)
NEGATIVE = (0.5, -0.25, 0.75, -0.3, 0.2, 0.6, 0.1, 0.4, 0.35)
SOME_ZERO = (0.0, 0.5, 0.25, 0.0, 1.0, 0.5, 0.5, 0.5, 0.5)

SUMMED = {"weighted": case(weight=WEIGHTS), "equal": case(), "lambda": case(weight=WEIGHTS, lambda_=0.3)}
CUT = {"cut": case(cutoff=0.1, models=(1, 3))}


def deltas(cases: dict[str, Case]) -> Table:
    return Table({**cases, "nothing": case(lambda_=0)}, models=(1, 2, 3))


TABLES = {
    "tsv": deltas({**SUMMED, **CUT}),
    "iso_c": deltas({**SUMMED, **CUT}),
    "iso_cts": deltas(
        {**SUMMED, **CUT, "less common": case(common=0.3), "none": case(common=0), "all": case(common=1)}
    ),
    "knots": deltas(
        {
            **SUMMED,
            **CUT,
            "sparse": case(density=DENSITIES, weight=WEIGHTS),
            "none": case(density=0),
            "sums": case(merge="task_arithmetic", weight=WEIGHTS),
            "sparse sums": case(merge="task_arithmetic", density=DENSITIES, weight=NEGATIVE),
        }
    ),
    "wudi": deltas({"default": case(), "lambda": case(lambda_=0.3)}),
    "regmean": Table(
        {
            "default": case(),
            "weighted": case(weight=WEIGHTS),
            "some zero": case(weight=SOME_ZERO, models=(2, 3)),
            "whole": case(alpha=1, ridge=0),
            "diagonal": case(alpha=0),
            "ridge": case(ridge=0.1),
        },
        relative=False,
        base=False,
        models=(1, 2, 3),
        companions=("gram", grams),
    ),
}


def exact_lines(method: str, table: Table) -> Iterator[tuple[str, str]]:
    """Digests of what has the same bits everywhere: tensors that are no matrices, or to which nothing is added."""
    for title, case_ in table.cases.items():
        counts = ANY if case_.models is None else case_.models
        for dtype in DTYPES:
            yield f"{title}/{dtype}", digest_of(*(merged(method, table, case_, "flat", dtype, n) for n in counts))
        policies = ("propagate", "base") if table.relative else ("propagate",)
        for policy in policies:
            results = (merged(method, table, case_, "flat odd", dtype, 3, nonfinite=policy) for dtype in DTYPES)
            yield f"{title}/{policy}", digest_of(*results)
    untouched = {"gram": [{}] * 3, "weight": list(WEIGHTS[:3])} if method == "regmean" else {"lambda_": 0}
    results = (merged(method, table, case(), "matrices", dtype, 3, **untouched) for dtype in DTYPES)
    yield "matrices as means", digest_of(*results)


def sums_of(tensors: Tensors) -> list[float]:
    """Of each tensor the sum of magnitudes, and two sums with signs of their own. Numbers stand for what is not finite.

    Sums are exactly rounded. Tensors of integers are passed over.
    """
    sums = []
    for _, tensor in sorted((name, t) for name, t in tensors.items() if t.is_floating_point()):
        values = torch.nan_to_num(tensor.double().flatten(), nan=3.0, posinf=5.0, neginf=-7.0).numpy()
        signs = words(7, values.size).view(np.int64)
        sums.append(math.fsum(np.abs(values).tolist()))
        sums.extend(math.fsum(np.where(signs >> bit & 1, values, -values).tolist()) for bit in (3, 11))
    return sums


def dense_lines(method: str, table: Table) -> Iterator[tuple[str, str]]:
    """Sums of merged matrices, in 16-bit dtypes before they are rounded to those."""
    policies = ("propagate", "base") if table.relative else ("propagate",)
    for title, case_ in table.cases.items():
        for dtype in (*DTYPES, "wide"):
            out = "float64" if dtype in ("float64", "wide") else "float32"
            for n in numbers_for(dtype, table.counts(case_)):
                result = merged(method, table, case_, "matrices", dtype, n, out_dtype=out)
                yield f"{title}/{dtype}/{n}", text_of(sums_of(result))
        for policy in policies:
            result = merged(method, table, case_, "matrices odd", "float32", 3, nonfinite=policy)
            yield f"{title}/{policy}", text_of(sums_of(result))
    if not table.companions:
        result = merged(method, table, table.cases[table.main], "matrices large", "float32", 3)
        yield "large", text_of(sums_of(result))


def text_of(sums: list[float]) -> str:
    return " ".join(f"{s:.9g}" for s in sums)


def same_sums(found: str, stored: str) -> bool:
    """Whether each tensor's three sums are the stored ones within the tolerance."""
    one, other = ([float(s) for s in text.split()] for text in (found, stored))
    if len(one) != len(other):
        return False
    scales = [other[i - i % 3] for i in range(len(other))]
    return all(abs(a - b) <= TOLERANCE * scale for a, b, scale in zip(one, other, scales, strict=True))


EXACT_GROUPS, DENSE_GROUPS = {"exact": exact_lines}, {"dense": dense_lines}
