"""How often a method reads its inputs: counted on the steps that it takes for a tensor that is not there.

The method is sent answers as they would come from the deltas of an ordinary matrix. No element is read.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from typing import Any

from ..requests import (
    Gram,
    GramResult,
    Histogram,
    HistogramResult,
    KthLargest,
    Moments,
    MomentsResult,
    Products,
    Rows,
    Selection,
)
from .base import Method, TensorInfo

SIDE = 256  # rows and columns of the matrix
KEY = 0x3F800000  # of the magnitude 1 in float32
MOST = 64  # measurements: a method that takes more is taken to be caught by an answer


def passes_of(method: Method, values: Mapping[str, Any]) -> int:
    """Measurements and the combination that the method asks for with these values."""
    try:
        return _counted(method, tuple(sorted(values.items())))
    except TypeError:  # a value that cannot be hashed, such as a state dict
        return _count(method, values)


@functools.lru_cache(maxsize=1024)
def _counted(method: Method, values: tuple[tuple[str, Any], ...]) -> int:
    return _count(method, dict(values))


def _count(method: Method, values: Mapping[str, Any]) -> int:
    models = _models(method, values)
    shape = (SIDE, SIDE)
    auxiliary = tuple(found for kind in method.auxiliary for found in (kind.shape(shape),) * models if found)
    tensor = TensorInfo("", SIDE * SIDE, models, shape=shape, auxiliary=auxiliary)
    steps = method.steps(tensor, values)
    answer = None
    for measured in itertools.count():
        try:
            request = steps.send(answer)
        except StopIteration:
            return measured + 1
        if measured == MOST or not isinstance(request, tuple(_ANSWERS)):
            return measured + 2  # a function's answer cannot be known: the combination is taken to follow
        answer = _ANSWERS[type(request)](request, tensor)


def _models(method: Method, values: Mapping[str, Any]) -> int:
    """How many models the values are for; where none tells, a number that the method takes."""
    for parameter in method.parameters:
        if parameter.per_model and isinstance(values.get(parameter.name), tuple):
            return len(values[parameter.name])
    least, most = method.models
    return max(least, 3 if most is None else min(most, 3))


def _selections(request: KthLargest, tensor: TensorInfo) -> list[Selection]:
    # The fewer elements are above a magnitude, the larger it is.
    return [Selection(KEY + (tensor.count - count) * 64, above=max(0, count - 1), ties=1) for count in request.counts]


def _moments(request: Moments, tensor: TensorInfo) -> list[MomentsResult]:
    n = tensor.count
    return [MomentsResult(float(n), float(n), n / 2, -3.0, 3.0, n, n // 2, 1.0) for _ in request.keep]


def _gram(request: Gram, tensor: TensorInfo) -> GramResult:
    inputs = range(tensor.models + len(tensor.auxiliary))
    distances = tuple(tuple(0.0 if i == k else 1.0 + 0.01 * (i + k) for k in inputs) for i in inputs)
    return GramResult((1.0,) * len(inputs), distances)


def _rows(request: Rows, tensor: TensorInfo) -> Any:
    """As many of each value as rows: about the number of columns, larger from value to value by a little."""
    import numpy as np

    growth = np.arange(len(request.of.values))[:, None] * 0.01
    return SIDE * (1.0 + growth + np.linspace(0, 0.01, SIDE)[None])


def _products(request: Products, tensor: TensorInfo) -> Any:
    """Vectors of length 1 at right angles to each other."""
    import numpy as np

    return np.array([[float(i == k)] * SIDE for i, k in request.pairs])


def _histogram(request: Histogram, tensor: TensorInfo) -> list[HistogramResult]:
    import numpy as np

    return [HistogramResult(0, 0, np.ones(2048, np.int64)) for _ in request.intervals]


_ANSWERS = {
    KthLargest: _selections,
    Moments: _moments,
    Gram: _gram,
    Rows: _rows,
    Products: _products,
    Histogram: _histogram,
}
