"""How often a method reads its inputs: counted on the steps that it takes for a tensor that is not there.

The method is sent answers as they would come from the deltas of an ordinary matrix. No element is read.
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
MOST = 64  # measurements: a method that takes more is taken to be caught by an answer


Values = Mapping[str, Any]


class Counted:
    """Reads of the inputs by the values of a method's parameters. models: least and most inputs it takes."""

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
        """Values that say where tensors are, not what is made of them."""
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
            except Exception:  # its end, or an answer that it cannot use: the real ones will show that
                return measured + 1
            if type(request) not in _ANSWERS:
                return measured + 2  # what a function answers is not known: the combination is taken to follow
            answer = _ANSWERS[type(request)](request, tensor)
        return MOST

    def _models(self, values: Values) -> int:
        """How many models the values are for; where none tells, a number that the method takes."""
        for name in self._per_model:
            if isinstance(values.get(name), tuple) and values[name]:
                return len(values[name])
        return usual_models(self._limits)


def _selections(request: KthLargest, tensor: TensorInfo) -> list[Selection]:
    # The fewer elements are above a magnitude, the larger it is.
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
    """A little more than the number of columns, and a quarter of it from value to value."""
    import numpy as np

    share = 0.25 ** np.arange(terms)[:, None]
    return SIDE * share * np.linspace(1.0, 1.01, SIDE)[None]


def _products(request: Reduce) -> Any:
    """Vectors of length 1 at right angles to each other."""
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
