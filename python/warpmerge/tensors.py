"""Merging tensors in memory: torch tensors or numpy arrays in, the same kind out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from . import backends, engine
from .dtypes import BY_NAME, FLOAT64, DType, float_dtype
from .errors import CheckpointError, RecipeError
from .methods import Base, Method, TensorInfo, find
from .tasks import Buffer, MemorySink, TensorTask, same_bytes

_shared: dict[tuple, Any] = {}


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

    tensors: torch tensors or numpy arrays of a floating-point dtype, any shape. base: the tensor that deltas are taken
    from; for slerp the one at t = 0 (without it, the first). parameters: those of the method (`wm.methods()`), each a
    scalar or, where it is per model, a list of K; write `lambda_` for lambda. name, seed: which random numbers a
    dropping method draws; `name` is the tensor's name in its model. Returns a new tensor of the same kind and device,
    in the dtype of the base (of the first tensor without one) unless `out_dtype` says otherwise.
    """
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
    values = _values(chosen, len(models), parameters)
    wanted = None if out_dtype is None else float_dtype(getattr(out_dtype, "__name__", out_dtype), "out_dtype")
    info = backends.choose(backend)
    results: dict[str, _Result] = {}
    tied: dict[tuple, str] = {}
    tasks = []
    alive = []  # a mapping may make its tensors when asked: freed ones would lend their addresses to the next
    for name in donor:
        sources = [_Array.of(m[name], name) for m in models]
        origin = None if reference is None else _Array.of(reference[name], name)
        owner = _Array.of(donor[name], name)
        alive += [*sources, owner, origin]
        identity = tuple(s.identity for s in [*sources, *([origin] if origin else [])])
        if identity in tied:
            results[name] = results[tied[identity]]
            continue
        tied[identity] = name
        dtype = (wanted or owner.dtype) if owner.dtype.is_float else owner.dtype
        result = results[name] = owner.empty(dtype)
        tasks.append(_task(name, chosen, values, sources, origin, owner, result, labels, seed, base is None))
    engine.run(tasks, _backend(info))
    return {name: result.finish() for name, result in results.items()}


def _inputs(method: Method, models: list, base: Any) -> tuple[list, Any]:
    """The merged models in order, and the reference."""
    if not models:
        raise RecipeError("there is nothing to merge: give at least one model.")
    if method.base is Base.REFERENCE:
        if base is None:
            raise RecipeError(f"method '{method.name}' needs a base.")
        return models, base
    if method.base is Base.ENDPOINT and base is not None:
        return [base, *(m for m in models if not _same(m, base))], None
    return models, None


def _same(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    return a is b or (a.keys() == b.keys() and all(a[k] is b[k] for k in a))


def _values(method: Method, models: int, given: Mapping[str, Any]) -> dict[str, Any]:
    given = {name.removesuffix("_") if name == "lambda_" else name: v for name, v in given.items()}
    for name in given:
        method.parameter(name)
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
    method.check_values(values)
    return values


def _scalar(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


class _Array:
    """A torch tensor or numpy array seen as contiguous memory on the host."""

    def __init__(self, original: Any, host: Any, dtype: DType, shape: tuple[int, ...]) -> None:
        self.original, self.host, self.dtype, self.shape = original, host, dtype, shape

    @classmethod
    def of(cls, array: Any, name: str) -> _Array:
        what = f"tensor '{name}'" if name else "a tensor"
        if isinstance(array, np.ndarray):
            dtype = BY_NAME.get(array.dtype.name)
            host = np.ascontiguousarray(array)
        elif hasattr(array, "data_ptr"):
            dtype = BY_NAME.get(str(array.dtype).removeprefix("torch."))
            host = array.detach().cpu().contiguous()
        else:
            raise RecipeError(f"{what} is a {type(array).__name__}; give torch tensors or numpy arrays.")
        if dtype is None:
            raise RecipeError(f"{what} has the dtype {array.dtype}, which cannot be merged.")
        return cls(array, host, dtype, tuple(array.shape))

    @property
    def identity(self) -> tuple:
        """Equal for two views of the same elements. Of the original: a contiguous copy's address means nothing."""
        if isinstance(self.original, np.ndarray):
            return ("numpy", self.original.ctypes.data, self.shape, self.original.strides, self.dtype.name)
        tensor = self.original
        return (str(tensor.device), tensor.data_ptr(), self.shape, tensor.stride(), self.dtype.name)

    def buffer(self) -> Buffer:
        if isinstance(self.host, np.ndarray):
            return Buffer(self.host.nbytes, self.dtype, self.host.ctypes.data, owner=self.host)
        nbytes = self.host.numel() * self.host.element_size()
        return Buffer(nbytes, self.dtype, self.host.data_ptr(), owner=self.host)

    def empty(self, dtype: DType) -> _Result:
        if isinstance(self.host, np.ndarray):
            element = self.original.dtype if dtype == self.dtype else _numpy_dtype(dtype)
            return _Result(np.empty(self.shape, element), None)
        import torch

        return _Result(torch.empty(self.shape, dtype=getattr(torch, dtype.name)), self.original.device)


class _Result:
    def __init__(self, array: Any, device: Any) -> None:
        self.array, self._device = array, device

    @property
    def address(self) -> int:
        return self.array.ctypes.data if isinstance(self.array, np.ndarray) else self.array.data_ptr()

    def finish(self) -> Any:
        return self.array if self._device is None else self.array.to(self._device)


def _numpy_dtype(dtype: DType) -> Any:
    try:
        return np.dtype(dtype.name)
    except TypeError:
        raise RecipeError(f"numpy has no {dtype}; import ml_dtypes, or choose another out_dtype.") from None


def _task(
    name: str,
    method: Method,
    values: Mapping[str, Any],
    sources: list[_Array],
    origin: _Array | None,
    owner: _Array,
    result: _Result,
    labels: list[str],
    seed: int,
    must_agree: bool,
) -> TensorTask:
    what = str(TensorInfo(name, 0, 0))
    arrays = [*sources, *([origin] if origin else [])]
    for label, array in zip(labels, arrays, strict=True):
        if array.shape != owner.shape:
            raise CheckpointError(f"{what} has the shape {list(owner.shape)} but {list(array.shape)} in {label}.")
        if array.dtype.is_float != owner.dtype.is_float:
            raise CheckpointError(f"{what} is {owner.dtype} but {array.dtype} in {label}.")
    merged = owner.dtype.is_float
    if not merged:
        if owner.dtype.is_quantized and method.name != "passthrough":
            raise CheckpointError(f"{what} is quantized ({owner.dtype}); dequantize it before merging.")
        if must_agree:
            for label, source in zip(labels, sources, strict=True):
                if not same_bytes([source.buffer(), owner.buffer()]):
                    raise CheckpointError(
                        f"{what} ({owner.dtype}) differs in {label} and cannot be averaged; give a base."
                    )
        sources, origin = [owner], None
    dtype = owner.dtype if not merged else BY_NAME[str(result.array.dtype).removeprefix("torch.")]
    return TensorTask(
        info=TensorInfo(name, int(np.prod(owner.shape, dtype=np.int64)), len(sources), seed),
        method=method if merged else None,
        values=values,
        inputs=[s.buffer() for s in sources],
        base=origin.buffer() if origin else None,
        out_dtype=dtype,
        sinks=[MemorySink(result.address, result.array)],
        labels=labels,
        wide=any(a.dtype == FLOAT64 for a in arrays),
    )


def _backend(info: backends.BackendInfo) -> Any:
    """One instance per backend and process: threads do not survive a fork."""
    key = (os.getpid(), info.name, os.environ.get("WARPMERGE_ISA"))
    if key not in _shared:
        _shared.clear()
        _shared[key] = backends.create(info)
    return _shared[key]
