"""Merging tensors in memory: torch tensors or numpy arrays in, the same kind out, on the same device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Any

from ..dtypes import DTYPES, DType, float_dtype
from ..errors import UsageError, enough_memory, shown
from ..methods import Base, Method, TensorInfo, find
from ..methods.base import Steps
from ..methods.parameters import checked_seed
from ..models.views import Memory
from ..plan.jobs import check_names, make_jobs
from ..requests import Combine
from ..tasks import TensorTask
from . import loop, model_scope
from .arrays import Array, ArrayModel, FileArray, Place, Ranges, called
from .results import Result
from .state_dicts import Asked, listed
from .values import resolve_values


def merge_tensors(
    tensors: Sequence[Any],
    method: str,
    *,
    base: Any = None,
    out_dtype: Any = None,
    backend: str = "auto",
    name: str = "",
    seed: int = 0,
    **parameters: Any,
) -> Any:
    """Merges K tensors of one shape.

    CUDA tensors are merged where they are, on torch's current stream. The call waits for the device if the method
    measures, and once to learn whether elements are not finite; with `nonfinite="propagate"` a method of one pass does
    not wait.

    Args:
        tensors: K torch tensors or numpy arrays of one shape and a floating-point dtype, all on one device. They are
            not changed.
        method: name of the method.
        base: the tensor that deltas are taken from; for `slerp` the tensor at t = 0. None: there is no base.
        out_dtype: floating-point dtype of the result. Default: that of the base, without one that of the first tensor.
        backend: `auto`, `cuda`, `triton`, `cpu` or `torch`.
        name: the tensor's name in its model. Name and seed decide the random numbers of a method that draws.
        seed: seed of methods that draw at random.
        **parameters: parameters of the method (`wm.list_methods()`); write `lambda_` for lambda. A per-model parameter
            is a number, or a list or 1-d array of K. None: the default. Auxiliary tensors, such as `fisher`, are a list
            of K tensors, None for a model without one.

    Returns:
        A new tensor of the kind and on the device of the inputs.

    Raises:
        UsageError: the method, a parameter or an argument is wrong.
        CheckpointError: the tensors do not fit, or one has NaN or infinities.
        DeviceError: the device has too little memory.

    Example:
        >>> y = wm.merge_tensors([a, b, c], "ties", base=x0, weight=[0.5, 0.3, 0.2], density=0.5)
    """
    if not isinstance(name, str):
        raise UsageError(f"name must be a string, the tensor's name in its model, got {shown(name)}.")
    tensors = listed(tensors, "tensors")
    for kind in find(method).auxiliary:
        given = parameters.get(kind.name)
        if isinstance(given, (list, tuple)):
            parameters[kind.name] = [{} if t is None else {name: t} for t in given]
        elif hasattr(given, "ndim"):
            raise UsageError(
                f"'{kind.name}' is a list of one tensor for each model, got a {type(given).__name__}; split a stacked "
                "one with list()."
            )
    merged = merge_state_dicts(
        [{name: t} for t in tensors],
        method,
        base=None if base is None else {name: base},
        out_dtype=out_dtype,
        backend=backend,
        seed=seed,
        **parameters,
    )
    return merged[name]


@enough_memory()
def merge_state_dicts(
    state_dicts: Sequence[Mapping[str, Any]],
    method: str,
    *,
    base: Mapping[str, Any] | None = None,
    out_dtype: Any = None,
    backend: str = "auto",
    seed: int = 0,
    **parameters: Any,
) -> dict[str, Any]:
    """Merges K state dicts of the same names and shapes.

    Integer and boolean tensors are copied from the base; without a base all models must agree on them. Names that share
    one tensor in every model (tied weights) share the merged tensor.

    Args:
        state_dicts: K mappings from names to torch tensors or numpy arrays, all on one device. They are not changed.
        method: name of the method.
        base: the state dict that deltas are taken from; for `slerp` that at t = 0. None: there is no base.
        out_dtype: floating-point dtype of the results. Default: the dtypes of the base, without one of the first model.
        backend: `auto`, `cuda`, `triton`, `cpu` or `torch`.
        seed: seed of methods that draw at random. Name and seed decide the random numbers, as in a merge of files.
        **parameters: parameters of the method, as in `merge_tensors`. Auxiliary tensors are a list of K state dicts.

    Returns:
        A dictionary from names to new tensors, of the kind and on the device of the inputs.

    Raises:
        UsageError: the method, a parameter or an argument is wrong.
        CheckpointError: names, shapes or integer tensors differ, or a model has NaN or infinities.
        DeviceError: the device has too little memory.

    Example:
        >>> merged = wm.merge_state_dicts([sd1, sd2], "linear", weight=[1, 2])
    """
    chosen, seed = find(method), checked_seed(seed)
    asked = Asked()
    given = [asked.tensors(t, f"model {number}") for number, t in enumerate(listed(state_dicts, "state_dicts"))]
    origin = None if base is None else asked.tensors(base, "the base")
    models, reference = _inputs(chosen, given, origin)
    chosen.check_models(len(models))
    source = origin if origin is not None else models[0]
    values = resolve_values(chosen, len(models), parameters, on_deltas=reference is not None)
    first = next(iter(source), "")
    place = Place.of(backend, source.get(first), called(first, "the base" if origin is not None else "model 0"))
    seen: dict[int, ArrayModel] = {}  # a mapping that comes twice is one model

    def taken(tensors: dict[str, Any], title: str) -> ArrayModel:
        if id(tensors) not in seen:
            seen[id(tensors)] = ArrayModel.of(tensors, title, place)
        known = seen[id(tensors)]
        return known if known.title == title else ArrayModel(title, known.arrays)

    inputs = [taken(model, f"model {number}") for number, model in enumerate(models)]
    operands = Operands(
        inputs,
        None if reference is None else taken(reference, "the base"),
        inputs[0] if origin is None else taken(origin, "the base"),
        take_from_source=base is not None,
        auxiliary=_auxiliary(chosen, values, inputs, place),
    )
    results = operands.results(wanted_dtype(out_dtype))
    operands.merge(chosen, values, {n: [r] for n, r in results.items()}, place, seed)
    return {name: result.finish() for name, result in results.items()}


def wanted_dtype(out_dtype: Any) -> DType | None:
    return None if out_dtype is None else float_dtype(getattr(out_dtype, "__name__", out_dtype), "out_dtype")


class Operands:
    """The models of a merge. What can be known of them once is kept, for merging them again.

    Args:
        models: the K merged models.
        reference: what deltas are taken from, or None.
        source: has the results' names, shapes and dtypes.
        take_from_source: integer tensors are the source's; otherwise the models must agree on them.
        auxiliary: by label the auxiliary tensors of each model.

    Raises CheckpointError for models that do not have the same tensors.
    """

    def __init__(
        self,
        models: Sequence[ArrayModel],
        reference: ArrayModel | None,
        source: ArrayModel,
        *,
        take_from_source: bool,
        auxiliary: Mapping[str, ArrayModel] = MappingProxyType({}),
    ) -> None:
        self.models, self.reference, self.source = models, reference, source
        self._take_from_source, self._auxiliary = take_from_source, auxiliary
        for model in [*models, *([reference] if reference else [])]:
            check_names(source, model)
        self._digests: dict[int, bytes] = {}
        first: dict[tuple, str] = {}
        # Names that share one tensor in every model share one result: each with the first of them.
        self._shared = {name: first.setdefault(self.identity(name), name) for name in source.names}

    def arrays(self, name: str) -> list[Array | FileArray]:
        """Those of the models and the reference."""
        return [model.arrays[name] for model in [*self.models, *([self.reference] if self.reference else [])]]

    def identity(self, name: str) -> tuple:
        """Equal for two names that are one tensor in every model."""
        others = [self.source, *self._auxiliary.values()]
        beside = [model.arrays[name] for model in others if name in model.arrays]
        return tuple(array.identity for array in [*self.arrays(name), *beside])

    @cached_property
    def memory(self) -> Ranges:
        """That of the models and the reference."""
        views = [array.view() for name in self.source.names for array in self.arrays(name)]
        return Ranges((view.address, view.nbytes) for view in views if isinstance(view, Memory))

    def results(self, out_dtype: DType | None) -> dict[str, Result]:
        """Empty tensors to merge into."""
        results: dict[str, Result] = {}
        for name, owner in self.source.arrays.items():
            shared = results.get(self._shared[name])
            dtype = (out_dtype or owner.dtype) if owner.dtype.is_float else owner.dtype
            results[name] = shared if shared is not None else owner.empty(dtype)
        return results

    def merge(
        self,
        method: Any,
        values: Mapping[str, Any],
        results: Mapping[str, Sequence[Any]],
        place: Place,
        seed: int = 0,
    ) -> None:
        """Merges into `results`: of each name one `Result` for each output of the method, some shared by names."""
        base = [self.reference.title] if self.reference else []
        labels = [*(model.title for model in self.models), *self._auxiliary, *base]
        jobs = make_jobs(
            method,
            self.source,
            self.models,
            self.reference,
            values=lambda name: values,
            out_kinds=lambda kinds: bytes(DTYPES.index(results[name][0].dtype) for name in self.source.names),
            labels=lambda name: labels,
            auxiliary=self._auxiliary,
            take_from_source=self._take_from_source,
            seed=seed,
            digests=self._digests,
        )
        first: dict[int, int] = {}
        for row, name in enumerate(jobs.names):  # names that share a result are merged once
            first.setdefault(id(results[name][0]), row)
        rows = list(first.values())
        tasks = [TensorTask(jobs.group(r), r, [result.sink() for result in results[jobs.names[r]]]) for r in rows]
        with place.turn() as backend, backend.guard():
            loop.run(tasks, backend, solved=model_scope.decided(jobs, rows, backend))


class Fixed:
    """Stands in for a method: one combination of all tensors."""

    name, copies, auxiliary = "fixed", False, ()

    def __init__(self, combine: Combine) -> None:
        self._combine = combine

    def steps(self, tensor: TensorInfo, p: Mapping[str, Any]) -> Steps:
        return self._combine
        yield


def _auxiliary(
    method: Method, values: Mapping[str, Any], models: Sequence[ArrayModel], place: Place
) -> dict[str, ArrayModel]:
    """The auxiliary tensors of each model by label, all models of one kind before those of the next."""
    found = {}
    for kind in method.auxiliary:
        for model, given in zip(models, values[kind.name], strict=True):
            if not isinstance(given, Mapping):
                raise UsageError(f"'{kind.name}' is a list of one state dict for each model, got {shown(given)}.")
            label = kind.label(model.title)
            found[label] = ArrayModel.of(given, label, place)
    return found


def _inputs(method: Method, models: list, base: Any) -> tuple[list, Any]:
    """The merged models in order, and the reference."""
    if not models:
        raise UsageError("there is nothing to merge: give at least one model.")
    if method.base is Base.REFERENCE and base is None:
        raise UsageError(f"method '{method.name}' needs a base; pass base=.")
    if method.base.is_reference:
        return models, base
    if method.base is Base.ENDPOINT and base is not None:
        return [base, *(m for m in models if not _same(m, base))], None
    return models, None


def _same(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    return a is b or (a.keys() == b.keys() and all(a[k] is b[k] for k in a))
