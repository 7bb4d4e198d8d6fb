"""Merging tensors in memory: torch tensors or numpy arrays in, the same kind out, on the same device."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .arrays import Array, Place, Result
from .companions import Companions
from .dtypes import FLOAT64, DType, float_dtype
from .errors import CheckpointError, RecipeError
from .methods import Base, Method, TensorInfo, find
from .tasks import Buffer, TensorTask, same_bytes


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
    (`wm.methods()`), each a scalar or, where it is per model, a list of K; what a method needs beside the models, such
    as `fisher`, is a list of K tensors (None: there is none); write `lambda_` for lambda. name, seed: which random
    numbers a dropping method draws; `name` is the tensor's name in its model. Returns a new tensor of the same kind and
    device, in the dtype of the base (of the first tensor without one) unless `out_dtype` says otherwise.

    CUDA tensors are merged where they are, on torch's current stream. The call waits for the device where the method
    measures, and to count elements that are not finite; with nonfinite="propagate" a method of one pass does not wait.
    """
    for kind in find(method).companions:
        listed = parameters.get(kind.name)
        if isinstance(listed, (list, tuple)):
            parameters[kind.name] = [{} if t is None else {name: t} for t in listed]
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
    """Merges K state dicts that have the same names and shapes; see merge_tensors. Companions are lists of state dicts.

    Integer and boolean tensors are taken from the base (without one, all models must agree on them). Names that share
    one tensor in every model (tied weights) share the merged one.
    """
    chosen = find(method)
    models, reference = _inputs(chosen, list(state_dicts), base)
    chosen.check_models(len(models))
    donor = base if base is not None else models[0]
    labels = [f"model {i}" for i in range(len(models))] + (["base"] if reference is not None else [])
    for label, other in zip(labels, [*models, *([reference] if reference is not None else [])], strict=True):
        if other.keys() != donor.keys():
            odd = sorted(other.keys() ^ donor.keys())[0]
            raise CheckpointError(f"{label} and the others do not have the same tensors: '{odd}' is in only some.")
    values = resolve_values(chosen, len(models), parameters, relative=reference is not None)
    place = Place.of(backend, next(iter(donor.values()), None))
    # All are held until the end: a mapping may make its tensors when asked, and freed ones would lend their addresses
    # to the next.
    seen = {id(d): {name: Array.of(d[name], name, place) for name in donor} for d in [*models, reference, donor] if d}
    operands = Operands(
        models=[seen[id(m)] for m in models] if donor else [{} for _ in models],
        reference=None if reference is None else seen.get(id(reference), {}),
        donor=seen.get(id(donor), {}),
        must_agree=base is None,
        companions=Companions(chosen, values, labels, donor, place),
    )
    results = operands.results(wanted_dtype(out_dtype))
    place.run(operands.tasks(chosen, values, {n: [r] for n, r in results.items()}, labels, seed))
    return {name: result.finish() for name, result in results.items()}


def wanted_dtype(out_dtype: Any) -> DType | None:
    return None if out_dtype is None else float_dtype(getattr(out_dtype, "__name__", out_dtype), "out_dtype")


class Operands:
    """The tensors of a merge by name. `donor` has the names, shapes and dtypes of the result, and its integer tensors.

    `must_agree`: without a base all models must have the same integer tensors. What can be known once is kept, for
    merging the same operands again.
    """

    def __init__(
        self,
        models: list[dict[str, Array]],
        reference: dict[str, Array] | None,
        donor: dict[str, Array],
        must_agree: bool,
        companions: Companions | None = None,
    ) -> None:
        self.companions = companions or Companions()
        self.models, self.reference, self.donor, self.must_agree = models, reference, donor, must_agree
        self._entries: dict[bool, list[_Entry]] = {}
        first: dict[tuple, str] = {}
        # Names that share one tensor in every model share one result: each with the first of them.
        self._shared = {name: first.setdefault(self._identity(name), name) for name in donor}

    def arrays(self, name: str) -> list[Array]:
        return [*(m[name] for m in self.models), *([self.reference[name]] if self.reference is not None else [])]

    def _identity(self, name: str) -> tuple:
        return tuple(a.identity for a in [*self.arrays(name), *self.companions.arrays(name)])

    def results(self, out_dtype: DType | None) -> dict[str, Result]:
        """Empty tensors to merge into."""
        results: dict[str, Result] = {}
        for name, owner in self.donor.items():
            shared = results.get(self._shared[name])
            dtype = (out_dtype or owner.dtype) if owner.dtype.is_float else owner.dtype
            results[name] = shared if shared is not None else owner.empty(dtype)
        return results

    def tasks(
        self,
        method: Method,
        values: Mapping[str, Any],
        results: Mapping[str, list[Result]],
        labels: list[str],
        seed: int,
    ) -> list[TensorTask]:
        """One task per result and the names that share it; `results`: a list for each name, one per output."""
        copying = method.name == "passthrough"
        if copying not in self._entries:
            self._entries[copying] = [self._entry(name, labels, copying) for name in self.donor]
        done = set()
        tasks = []
        for entry in self._entries[copying]:
            outputs, count = results[entry.name], len(entry.inputs) - len(entry.companions)
            if id(outputs[0]) in done:
                continue
            done.add(id(outputs[0]))
            tasks.append(
                TensorTask(
                    info=TensorInfo(entry.name, entry.count, count, seed, entry.shape, entry.wide, entry.companions),
                    method=method if entry.merged else None,
                    values=values,
                    inputs=entry.inputs,
                    base=entry.base,
                    out_dtype=outputs[0].dtype,
                    sinks=[output.sink() for output in outputs],
                    labels=[*labels, *self.companions.labels],
                    wide=entry.wide,
                )
            )
        return tasks

    def _entry(self, name: str, labels: list[str], copying: bool) -> _Entry:
        what = str(TensorInfo(name, 0, 0))
        owner, arrays = self.donor[name], self.arrays(name)
        for label, array in zip(labels, arrays, strict=True):
            if array.shape != owner.shape:
                raise CheckpointError(f"{what} has the shape {list(owner.shape)} but {list(array.shape)} in {label}.")
            if array.dtype.is_float != owner.dtype.is_float:
                raise CheckpointError(f"{what} is {owner.dtype} but {array.dtype} in {label}.")
        count = math.prod(owner.shape)
        buffers = [a.buffer() for a in arrays]
        companions, shapes = self.companions.of(name, owner)
        if owner.dtype.is_float:
            base = buffers.pop() if self.reference is not None else None
            wide = any(a.dtype == FLOAT64 for a in [*arrays, *companions])
            buffers += [a.buffer() for a in companions]
            return _Entry(name, owner.shape, count, True, buffers, base, wide, shapes)
        if owner.dtype.is_quantized and not copying:
            raise CheckpointError(f"{what} is quantized ({owner.dtype}); dequantize it before merging.")
        if self.must_agree:
            for label, buffer in zip(labels, buffers, strict=True):
                if not same_bytes([buffer, owner.buffer()]):
                    raise CheckpointError(
                        f"{what} ({owner.dtype}) differs in {label} and cannot be averaged; give a base."
                    )
        return _Entry(name, owner.shape, count, False, [owner.buffer()], None, False)


class _Entry(NamedTuple):
    """What all tasks of one tensor have in common. `merged`: its elements are averaged, not copied."""

    name: str
    shape: tuple[int, ...]
    count: int
    merged: bool
    inputs: list[Buffer]
    base: Buffer | None
    wide: bool
    companions: tuple[tuple[int, ...], ...] = ()


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


def resolve_values(method: Method, models: int, given: Mapping[str, Any], *, relative: bool) -> dict[str, Any]:
    given = {name.removesuffix("_") if name == "lambda_" else name: v for name, v in given.items()}
    for name in given:
        method.parameter(name)
    given = {**given, **{name: v for name, v in method.preset(given).items() if given.get(name) is None}}
    values = {}
    for parameter in method.parameters:
        value = given.get(parameter.name, parameter.default)
        if parameter.name not in given and parameter.required:
            raise RecipeError(f"method '{method.name}' needs the parameter '{parameter.name}'.")
        try:
            if parameter.per_model:
                listed = list(value) if isinstance(value, (list, tuple, np.ndarray)) else [value] * models
                if len(listed) != models:
                    raise ValueError(f"expected one value per model ({models}), got {len(listed)}")
                values[parameter.name] = tuple(parameter.convert(_scalar(v)) for v in listed)
            else:
                values[parameter.name] = parameter.convert(_scalar(value)) if value is not None else None
        except ValueError as error:
            raise RecipeError(f"method '{method.name}': '{parameter.name}': {error}.") from None
    method.check_values(values, models, relative=relative)
    return values


def _scalar(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value
