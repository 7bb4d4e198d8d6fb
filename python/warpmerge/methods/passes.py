"""Counts how often a method reads its inputs.

The method's function runs for a tensor that does not exist. It is sent answers as they would come from the deltas of an
ordinary matrix, and each request is one pass. No element is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..requests import (
    Gram,
    GramResult,
    HistogramResult,
    KthLargest,
    Reduce,
    Selection,
)
from .auxiliary import AuxiliaryTensor
from .base import Steps, TensorInfo, usual_models
from .parameters import Parameter

SIDE = 256  # rows and columns of the matrix
KEY = 0x3F800000  # of the magnitude 1 in float32
MOST = 64  # measurements: after more of them, the method is taken to loop over the made-up answers


Values = Mapping[str, Any]


class Counted:
    """The number of passes of a method, as a function of its parameters' values. Counts are kept.

    models: least and largest number of inputs that the method accepts.
    """

    def __init__(
        self,
        steps: Callable[[TensorInfo, Values], Steps],
        parameters: Sequence[Parameter],
        auxiliary: Sequence[AuxiliaryTensor] = (),
        models: tuple[int, int | None] = (1, None),
    ) -> None:
        self._steps, self._auxiliary, self._limits = steps, auxiliary, models
        self._per_model = [p.name for p in parameters if p.per_model]
        self._known: dict[tuple, int] = {}

    def __call__(self, values: Values) -> int:
        key = tuple((name, value) for name, value in sorted(values.items()) if name not in self._sources)
        if key not in self._known:
            self._known[key] = self._count(values)
        return self._known[key]

    @property
    def _sources(self) -> set[str]:
        """Names of parameters that say where auxiliary tensors are. They do not change the steps."""
        return {kind.name for kind in self._auxiliary}

    def _count(self, values: Values) -> int:
        models, shape = self._models(values), (SIDE, SIDE)
        auxiliary = tuple(found for kind in self._auxiliary for found in (kind.shape(shape),) * models if found)
        tensor = TensorInfo("", SIDE * SIDE, models, shape=shape, auxiliary=auxiliary)
        steps = self._steps(tensor, values)
        answer = None
        for measured in range(MOST):
            try:
                request = steps.send(answer)
            except Exception:  # it returned, or it cannot use a made-up answer; a real merge will show an error
                return measured + 1
            if type(request) not in _ANSWERS:
                return measured + 2  # the answer of a TensorFunction is not known; the combination is taken to follow
            answer = _ANSWERS[type(request)](request, tensor)
        return MOST

    def _models(self, values: Values) -> int:
        """The number of models that the values are for. If no value is per model: one that the method accepts."""
        for name in self._per_model:
            if isinstance(values.get(name), tuple) and values[name]:
                return len(values[name])
        return usual_models(self._limits)


def _selections(request: KthLargest, tensor: TensorInfo) -> list[Selection]:
    # The smaller the count, the larger the magnitude.
    return [Selection(KEY + (tensor.count - count) * 64, above=max(0, count - 1), ties=1) for count in request.counts]


def _reduction(request: Reduce, tensor: TensorInfo) -> Any:
    if request.kind == "histogram":
        return _histogram(request)
    values = tensor.models if request.terms is None else len(request.terms.values)
    terms = len(request.pairs) or values
    if request.over != "tensor":
        return _products(request) if request.pairs else _rows(terms)
    return (tensor.count,) * terms if request.kind == "count" else (float(tensor.count),) * terms


def _gram(request: Gram, tensor: TensorInfo) -> GramResult:
    inputs = range(tensor.models + len(tensor.auxiliary))
    distances = tuple(tuple(0.0 if i == k else 1.0 + 0.01 * (i + k) for k in inputs) for i in inputs)
    return GramResult((1.0,) * len(inputs), distances)


def _rows(terms: int) -> Any:
    """Sums a little above the number of columns; each value's is a quarter of the one before."""
    import numpy as np

    share = 0.25 ** np.arange(terms)[:, None]
    return SIDE * share * np.linspace(1.0, 1.01, SIDE)[None]


def _products(request: Reduce) -> Any:
    """Products of orthogonal vectors of length 1."""
    import numpy as np

    return np.array([[float(i == k)] * SIDE for i, k in request.pairs])


def _histogram(request: Reduce) -> list[HistogramResult]:
    import numpy as np

    return [HistogramResult(0, 0, np.ones(2048, np.int64)) for _ in request.intervals]


_ANSWERS: dict[type, Callable[[Any, TensorInfo], Any]] = {
    KthLargest: _selections,
    Reduce: _reduction,
    Gram: _gram,
}
