"""Merging tensors in memory: torch tensors or numpy arrays in, the same kind out, on the same device."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from ..dtypes import FLOAT64, DType, float_dtype
from ..errors import CheckpointError, RecipeError, shown
from ..methods import Base, Method, Parameter, TensorInfo, find
from ..methods.parameters import checked_seed
from ..models.views import View
from ..recipe.resolve import complete_values
from ..tasks import TensorTask, same_bytes
from .arrays import Array, Place, Result
from .auxiliary import AuxiliaryTensors


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

    tensors: torch tensors or numpy arrays of a floating-point dtype, any shape, all on one device. base: the tensor
    that deltas are taken from; for slerp the one at t = 0 (without it, the first). parameters: those of the method
    (`wm.list_methods()`), each a scalar or, where it is per model, a list or 1-d array of K, and None as if it were not
    given; what a method needs beside the models, such as `fisher`, is a list of K tensors (None: there is none); write
    `lambda_` for lambda. name, seed: which random numbers a dropping method draws; `name` is the tensor's name in its
    model. Returns a new tensor of the same kind and device, in the dtype of the base (of the first tensor without one)
    unless `out_dtype` says otherwise.

    CUDA tensors are merged where they are, on torch's current stream. The call waits for the device where the method
    measures, and to count elements that are not finite; with nonfinite="propagate" a method of one pass does not wait.
    """
    if not isinstance(name, str):
        raise RecipeError(f"name is the tensor's name in its model, a string, got {shown(name)}.")
    for kind in find(method).auxiliary:
        listed = parameters.get(kind.name)
        if isinstance(listed, (list, tuple)):
            parameters[kind.name] = [{} if t is None else {name: t} for t in listed]
        elif hasattr(listed, "ndim"):
            raise RecipeError(
                f"'{kind.name}' is a list of one tensor for each model, got a {type(listed).__name__}; split a stacked "
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
    """Merges K state dicts that have the same names and shapes; see merge_tensors.

    Auxiliary tensors are lists of state dicts.

    Integer and boolean tensors are taken from the base (without one, all models must agree on them). Names that share
    one tensor in every model (tied weights) share the merged one.
    """
    chosen, seed = find(method), checked_seed(seed)
    models, reference = _inputs(chosen, list(state_dicts), base)
    chosen.check_models(len(models))
    metadata_source = base if base is not None else models[0]
    labels = [f"model {i}" for i in range(len(models))] + (["base"] if reference is not None else [])
    for label, other in zip(labels, [*models, *([reference] if reference is not None else [])], strict=True):
        if other.keys() != metadata_source.keys():
            odd = sorted(other.keys() ^ metadata_source.keys())[0]
            raise CheckpointError(f"{label} and the others do not have the same tensors: '{odd}' is in only some.")
    values = resolve_values(chosen, len(models), parameters, on_deltas=reference is not None)
    place = Place.of(backend, next(iter(metadata_source.values()), None))
    # All are held until the end: a mapping may make its tensors when asked, and freed ones would lend their addresses
    # to the next.
    seen = {
        id(d): {name: Array.of(d[name], name, place) for name in metadata_source}
        for d in [*models, reference, metadata_source]
        if d
    }
    operands = Operands(
        models=[seen[id(m)] for m in models] if metadata_source else [{} for _ in models],
        reference=None if reference is None else seen.get(id(reference), {}),
        metadata_source=seen.get(id(metadata_source), {}),
        must_agree=base is None,
        auxiliary=AuxiliaryTensors(chosen, values, labels, metadata_source, place),
    )
    results = operands.results(wanted_dtype(out_dtype))
    place.run(operands.tasks(chosen, values, {n: [r] for n, r in results.items()}, labels, seed))
    return {name: result.finish() for name, result in results.items()}


def wanted_dtype(out_dtype: Any) -> DType | None:
    return None if out_dtype is None else float_dtype(getattr(out_dtype, "__name__", out_dtype), "out_dtype")


class Operands:
    """The tensors of a merge by name. `metadata_source` has the result's names, shapes, dtypes and integers.

    `must_agree`: without a base all models must have the same integer tensors. What can be known once is kept, for
    merging the same operands again.
    """

    def __init__(
        self,
        models: list[dict[str, Array]],
        reference: dict[str, Array] | None,
        metadata_source: dict[str, Array],
        must_agree: bool,
        auxiliary: AuxiliaryTensors | None = None,
    ) -> None:
        self.auxiliary = auxiliary or AuxiliaryTensors()
        self.models, self.reference, self.metadata_source, self.must_agree = (
            models,
            reference,
            metadata_source,
            must_agree,
        )
        self._entries: dict[bool, list[_Entry]] = {}
        first: dict[tuple, str] = {}
        # Names that share one tensor in every model share one result: each with the first of them.
        self._shared = {name: first.setdefault(self._identity(name), name) for name in metadata_source}

    def arrays(self, name: str) -> list[Array]:
        return [*(m[name] for m in self.models), *([self.reference[name]] if self.reference is not None else [])]

    def _identity(self, name: str) -> tuple:
        return tuple(a.identity for a in [*self.arrays(name), *self.auxiliary.arrays(name)])

    def results(self, out_dtype: DType | None) -> dict[str, Result]:
        """Empty tensors to merge into."""
        results: dict[str, Result] = {}
        for name, owner in self.metadata_source.items():
            shared = results.get(self._shared[name])
            dtype = (out_dtype or owner.dtype) if owner.dtype.is_float else owner.dtype
            results[name] = shared if shared is not None else owner.empty(dtype)
        return results

    def tasks(
        self,
        method: Any,
        values: Mapping[str, Any],
        results: Mapping[str, list[Result]],
        labels: list[str],
        seed: int,
    ) -> list[TensorTask]:
        """One task per result and the names that share it; `results`: a list for each name, one per output."""
        copying = method.copies
        if copying not in self._entries:
            self._entries[copying] = [self._entry(name, labels, copying) for name in self.metadata_source]
        done = set()
        tasks = []
        for entry in self._entries[copying]:
            outputs, count = results[entry.name], len(entry.inputs) - len(entry.auxiliary)
            if id(outputs[0]) in done:
                continue
            done.add(id(outputs[0]))
            tasks.append(
                TensorTask(
                    info=TensorInfo(entry.name, entry.count, count, seed, entry.shape, entry.fp64, entry.auxiliary),
                    method=method if entry.merged else None,
                    values=values,
                    inputs=entry.inputs,
                    base=entry.base,
                    out_dtype=outputs[0].dtype,
                    sinks=[output.sink() for output in outputs],
                    labels=[*labels, *self.auxiliary.labels],
                    fp64=entry.fp64,
                )
            )
        return tasks

    def _entry(self, name: str, labels: list[str], copying: bool) -> _Entry:
        what = str(TensorInfo(name, 0, 0))
        owner, arrays = self.metadata_source[name], self.arrays(name)
        for label, array in zip(labels, arrays, strict=True):
            if array.shape != owner.shape:
                raise CheckpointError(f"{what} has the shape {list(owner.shape)} but {list(array.shape)} in {label}.")
            if array.dtype.is_float != owner.dtype.is_float:
                raise CheckpointError(f"{what} is {owner.dtype} but {array.dtype} in {label}.")
        count = math.prod(owner.shape)
        views: list[View] = [a.view() for a in arrays]
        auxiliary, shapes = self.auxiliary.of(name, owner)
        if owner.dtype.is_float:
            base = views.pop() if self.reference is not None else None
            fp64 = any(a.dtype == FLOAT64 for a in [*arrays, *auxiliary])
            views += [a.view() for a in auxiliary]
            return _Entry(name, owner.shape, count, True, views, base, fp64, shapes)
        if owner.dtype.is_quantized and not copying:
            raise CheckpointError(f"{what} is quantized ({owner.dtype}); dequantize it before merging.")
        if self.must_agree:
            for label, view in zip(labels, views, strict=True):
                if not same_bytes([view, owner.view()]):
                    raise CheckpointError(
                        f"{what} ({owner.dtype}) differs in {label} and cannot be averaged; give a base."
                    )
        return _Entry(name, owner.shape, count, False, [owner.view()], None, False)


class _Entry(NamedTuple):
    """What all tasks of one tensor have in common. `merged`: its elements are averaged, not copied."""

    name: str
    shape: tuple[int, ...]
    count: int  # type: ignore[assignment]
    merged: bool
    inputs: list[View]
    base: View | None
    fp64: bool
    auxiliary: tuple[tuple[int, ...], ...] = ()


def _inputs(method: Method, models: list, base: Any) -> tuple[list, Any]:
    """The merged models in order, and the reference."""
    if not models:
        raise RecipeError("there is nothing to merge: give at least one model.")
    if method.base is Base.REFERENCE and base is None:
        raise RecipeError(f"method '{method.name}' needs a base.")
    if method.base.is_reference:
        return models, base
    if method.base is Base.ENDPOINT and base is not None:
        return [base, *(m for m in models if not _same(m, base))], None
    return models, None


def _same(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    return a is b or (a.keys() == b.keys() and all(a[k] is b[k] for k in a))


def resolve_values(method: Method, models: int, given: Mapping[str, Any], *, on_deltas: bool) -> dict[str, Any]:
    """The final value of each parameter, a tuple of K where it is per model. None counts as not given."""
    given = {"lambda" if name == "lambda_" else name: value for name, value in given.items()}
    for name, value in given.items():
        parameter = method.parameter(name)
        with _naming(method, name):
            given[name] = _plain(parameter, value)
    rows = {}
    for parameter in method.parameters:
        value = given.get(parameter.name)
        with _naming(method, parameter.name):
            if parameter.per_model:
                rows[parameter.name] = _per_model(parameter, value, models)
            else:
                rows[parameter.name] = (None if value is None else parameter.convert(value),)
    return complete_values(
        method,
        rows,
        models,
        on_deltas=on_deltas,
        missing=lambda parameter, _: RecipeError(f"method '{method.name}' needs the parameter '{parameter.name}'."),
    )


def _per_model(parameter: Parameter, value: Any, models: int) -> tuple:
    if value is None:
        return (None,) * models
    listed = [_plain(parameter, v) for v in value] if isinstance(value, (list, tuple)) else [value] * models
    if len(listed) != models:
        raise ValueError(f"expected one value per model ({models}), got {len(listed)}")
    if any(v is None for v in listed):
        raise ValueError(f"expected a {parameter.kind}, got None")
    return tuple(map(parameter.convert, listed))


def _plain(parameter: Parameter, value: Any) -> Any:
    """What an array or tensor holds: a scalar, or a list if it has one dimension. Any other value as it is."""
    if not (hasattr(value, "ndim") and hasattr(value, "tolist")):
        return value
    if value.ndim > 1:
        raise ValueError(f"expected a {parameter.kind}, got an array of the shape {list(value.shape)}")
    try:
        return value.tolist()
    except RuntimeError as error:  # a tensor without data, such as one on meta
        raise ValueError(f"the tensor cannot be read: {error}") from None


@contextmanager
def _naming(method: Method, parameter: str) -> Iterator[None]:
    try:
        yield
    except RecipeError:
        raise
    except ValueError as error:
        raise RecipeError(f"method '{method.name}': '{parameter}': {error}.") from None
