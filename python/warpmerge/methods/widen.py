"""Weight disentanglement: changes of the norm and the direction of a column decide each model's share of it.

A column of a weight matrix has a norm and a direction. The more a model changed them, compared with the model's other
columns, the larger its share of that column. One read measures products of base and deltas along the columns; norms
and angles follow from these. The shares are computed on the host, and a second read merges. In a vector every element
counts by its own change.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..expr.expression import Expr, add_up, base, column, exp, maximum, row, value, where
from ..expr.formula import Formula
from ..expr.library import deltas
from ..requests import Copy, Map, Over, Reduce
from .base import Base, Steps, TensorInfo
from .parameters import number
from .registry import method
from .rows import is_matrix

ROUNDING = 2.0**-40  # a delta turns a vector if a larger share of its square is across that vector
SLACK = 1 + 2.0**-30  # more than the error of a float64 sum of 2^30 elements, less than a step of float32
EMBEDDINGS = ("embed_tokens", "word_embeddings", "tok_embeddings", "wte")


def changes(base_sq: Any, products: Any, deltas_sq: Any) -> tuple[Any, Any]:
    """How much the norm of each vector changed, and its direction (1 - cos), from |x_0|^2, x_0 d_k and |d_k|^2.

    A vector of zeros, before or after, has not changed its direction.
    """
    import numpy as np

    before = np.sqrt(base_sq)
    after = np.sqrt(np.maximum(base_sq + 2 * products + deltas_sq, 0.0))
    with np.errstate(all="ignore"):
        longer = np.where(before + after > 0, (2 * products + deltas_sq) / (before + after), 0.0)
        across = deltas_sq - longer**2
        turned = np.where((before * after > 0) & (across > ROUNDING * deltas_sq), across / (2 * before * after), 0.0)
    return np.abs(longer), turned


def ranked(change: Any) -> Any:
    """(K, n) ranks of the entries of each row, 0 for the smallest; of equal entries the first has the lower rank."""
    import numpy as np

    order = np.argsort(change, axis=1)  # twice as fast as a stable one, which ties need
    ordered = np.take_along_axis(change, order, axis=1)
    tied = ~(ordered[:, :-1] < ordered[:, 1:]).all(axis=1)
    order[tied] = np.argsort(change[tied], axis=1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(change.shape[1])[None], axis=1)
    return ranks


@functools.lru_cache(maxsize=16)
def _powers(count: int) -> Any:
    """(count,) e^(r / count) by `math`, since numpy's depends on the processor."""
    import numpy as np

    return np.array([math.exp(r / count) for r in range(count)])


def scored(change: Any, ratio: float, calibration: float) -> Any:
    """(K, n) shares of the models: the softmax of the changes' ranks; `calibration` for changes that stand out."""
    import numpy as np

    ranks = ranked(change)
    powers = _powers(change.shape[1])[ranks]
    together = add_up(list(powers))
    return np.where(ranks > ratio * (change.shape[1] - 1) / 2, calibration, powers / together)


def of_elements(d: Sequence[Expr], calibration: float, bounds: Sequence[float]) -> Expr:
    """The merged delta of an element of a vector: the sum of the models' shares of their deltas.

    calibration: the share of a model's delta that is larger than its bound.
    """
    sizes, outstanding = [abs(x) for x in d], value(calibration)
    largest = sizes[0]
    for size in sizes[1:]:
        largest = maximum(size, largest)
    powers = [exp(size - largest) for size in sizes]
    together = add_up(powers)
    shares = [
        where(size > bound, outstanding, power / together)
        for size, bound, power in zip(sizes, bounds, powers, strict=True)
    ]
    return add_up([x * share for x, share in zip(d, shares, strict=True)])


def sums(shape: tuple[int, ...], models: int) -> int:
    """Bytes of the products' sums (csrc/ops/reduce.h), and of a few arrays of them."""
    if len(shape) < 2:
        return 0
    columns = shape[-1]
    rows = math.prod(shape) // max(1, columns)
    partial = max(columns * min(64, rows, max(1, 2**19 // max(1, columns))), rows * -(-columns // 4096))
    return 8 * (2 * models + 1) * partial + 64 * models * max(rows, columns)


@method(
    "widen",
    base=Base.REFERENCE,
    parameters=[
        number("ratio", low=0, default=1.0, help="a column stands out if its rank is above this times the mean rank"),
        number("calibration", default=1.0, help="share of a model's delta in columns that stand out"),
    ],
    memory=sums,
    formula="""y = x_0 + sum (s_k + t_k) / 2 d_k  in each column j
s_k = softmax over the models of R_k;  s_k = calibration where R_k > ratio (mean of R_k over the columns)
R_k = rank of ||x_k,j| - |x_0,j|| among the columns / their number;  t_k: the same of 1 - cos angle(x_k,j, x_0,j)
y = x_0 + sum s_k d_k  in a vector,  with R_k = |d_k|""",
    paper="Yu et al. 2024, Extend model merging from fine-tuned to pre-trained LLMs via WIDEN, arXiv 2408.03092",
    notes=[
        "Ranks start at 0 for the smallest change. Of equal changes the first column has the lower rank.",
        "In a token embedding ("
        + ", ".join(EMBEDDINGS)
        + " in its name) rows take the place of columns: a row is a token's.",
        "A tensor of three dimensions or more counts as a matrix. Its last dimension gives the columns.",
        "In a vector, |d_k| stands out if it is above ratio times its mean by more than rounding: a share of 2^-30.",
    ],
    differences={
        "mergekit": "mergekit does not implement this method.",
        "the paper": [
            "The authors' code recognises an embedding by embed_tokens only.",
            "The authors' code refuses tensors of three dimensions.",
            "The authors' code gives NaN for a column of zeros. Here its direction counts as unchanged.",
        ],
    },
)
def widen(tensor: TensorInfo, p: Mapping[str, Any]) -> Steps:
    """Base plus the deltas, each column times a model's share: the more it changed the column, the larger."""
    ratio, calibration = p["ratio"], p["calibration"]
    if not tensor.count:
        return Copy()
    d, columns = deltas(tensor.models), tensor.columns
    if not is_matrix(tensor):
        found = yield Reduce("sum", Formula([abs(x) for x in d], columns), "row", "float64")
        bounds = [ratio * (float(s) / tensor.count) * SLACK for (s,) in found]
        return Map(Formula((of_elements(d, calibration, bounds),)), on_deltas=True, nan_of=None)
    by_row = any(name in tensor.name for name in EMBEDDINGS)
    values = range(1, tensor.models + 1)
    pairs = ((0, 0), *((0, k) for k in values), *((k, k) for k in values))
    over: Over = "row" if by_row else "column"
    sums = yield Reduce("sum", Formula((base(), *d), columns), over, "float64", pairs)
    changed = changes(sums[0], sums[1 : tensor.models + 1], sums[tensor.models + 1 :])
    longer, turned = (scored(change, ratio, calibration) for change in changed)
    place = row if by_row else column
    merged = add_up([x * place(share) for x, share in zip(d, (longer + turned) / 2, strict=True)])
    return Map(Formula((merged,), columns), on_deltas=True, nan_of=None)
