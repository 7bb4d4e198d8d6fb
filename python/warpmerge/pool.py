"""Pools: models in one place, merged again and again, for searches over merges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from . import backends
from .engine.arrays import Array, ArrayModel, FileArray, Place
from .engine.memory_merge import Fixed, Operands, wanted_dtype
from .engine.targets import results_in
from .engine.values import resolve_values
from .errors import DeviceError, UsageError
from .methods import Base, find
from .methods.parameters import LARGEST, checked_seed
from .models import Checkpoint
from .plan.jobs import check_names
from .requests import WeightedSum
from .threads import thread_count

Source = str | Path | Mapping[str, Any]


class Pool:
    """A base and K models in one place: the memory of a GPU, or on a CPU the page cache of their files.

    A pool is a context manager; leaving the block closes its files. On a CPU each merge reads the files, so they must
    not change while the pool is used.

    Example:
        >>> pool = wm.Pool("base/", ["math/", "code/"], device="cuda")
        >>> merged = pool.merge("ties", weight=[0.6, 0.4], density=0.5)     # a new state dict
        >>> pool.merge("ties", weight=[0.5, 0.5], density=0.5, into=model)  # the parameters of a module, in place
        >>> variants = pool.sweep([[1.0, 0.0], [0.7, 0.3], [0.5, 0.5]])     # three state dicts from one read
    """

    def __init__(
        self,
        base: Source | None,
        models: Sequence[Source],
        *,
        device: str = "auto",
        backend: str = "auto",
        threads: int | None = None,
    ) -> None:
        """Loads the models.

        Args:
            base: the base: a directory, a Hugging Face id, or a state dict of torch tensors. None: there is no base.
            models: the models, of the same kinds. All have the same names and shapes.
            device: `auto`, `cpu`, `cuda` or `cuda:N`. `auto`: the device of the first tensor, else the best one.
            backend: `auto`, `cuda`, `triton`, `cpu` or `torch`.
            threads: number of threads that load files. Default: the cores that this process may use.

        Raises:
            UsageError: an argument is wrong.
            CheckpointError: files are missing or damaged, or the models do not have the same tensors.
            DeviceError: the device cannot be used, or the models do not fit into its memory.
        """
        if isinstance(models, (str, Path, Mapping)) or not models:
            raise UsageError("models must be a list of at least one model.")
        self._place = _place(device, backend, [*models, *([base] if base is not None else [])])
        self._checkpoints: list[Checkpoint] = []
        self._finite: bool | None = None
        self._closed = False
        self._prepared: dict[tuple[int, bool], Operands] = {}
        try:
            load = _Loader(self._place, thread_count(threads), self._checkpoints)
            self._models = [ArrayModel(f"model {number}", load(m)) for number, m in enumerate(models)]
            self._base = None if base is None else ArrayModel("the base", load(base))
            for model in self._models:
                check_names(self._source, model)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Closes the files. Merged tensors stay valid; the pool cannot be used any more."""
        self._closed = True
        for checkpoint in self._checkpoints:
            checkpoint.close()

    @property
    def _source(self) -> ArrayModel:
        """The model that has the results' names and dtypes."""
        return self._models[0] if self._base is None else self._base

    @property
    def device(self) -> str:
        """The device of the models and of results: `cpu` or `cuda:N`."""
        return self._place.device

    @property
    def backend(self) -> str:
        """Name of the backend."""
        return self._place.info.name

    def __len__(self) -> int:
        """K, the number of models without the base."""
        return len(self._models)

    def merge(self, method: str, *, into: Any = None, out_dtype: Any = None, seed: int = 0, **parameters: Any) -> Any:
        """Merges all models of the pool.

        Args:
            method: name of the method.
            into: a torch module or a state dict with the pool's tensors, on the pool's device. The merged tensors are
                written into it, each in the dtype that it has there. None: a new state dict is made.
            out_dtype: floating-point dtype of a new state dict. Default: the dtypes of the base, without one those of
                the first model.
            seed: seed of methods that draw at random.
            **parameters: parameters of the method, as in `merge_tensors`.

        Returns:
            `into`, or a dictionary from names to torch tensors on the pool's device.

        Raises:
            UsageError: the method, a parameter or an argument is wrong.
            CheckpointError: tensors of `into` do not fit, or a model has NaN or infinities.
        """
        chosen, seed = find(method), checked_seed(seed)
        if chosen.auxiliary:
            raise UsageError(
                f"method '{chosen.name}' needs each model's {chosen.auxiliary[0].name}, but a pool holds models only; "
                "use merge_state_dicts or a recipe."
            )
        models, reference = self._models, None
        if chosen.base is Base.REFERENCE and self._base is None:
            raise UsageError(f"method '{chosen.name}' needs a base, and this pool has none; give Pool a base.")
        if chosen.base.is_reference:
            reference = self._base
        elif chosen.base is Base.ENDPOINT and self._base is not None:
            models = [self._base, *models]
        chosen.check_models(len(models))
        values = resolve_values(chosen, len(models), parameters, on_deltas=reference is not None)
        if values["nonfinite"] == "error" and self._known_finite():
            values = {**values, "nonfinite": "propagate"}  # nothing to count, so nothing to wait for
        operands = self._operands(models, reference)
        if into is None:
            results = operands.results(wanted_dtype(out_dtype))
        else:
            if out_dtype is not None:
                raise UsageError("out_dtype and into exclude each other: the tensors of into keep their dtypes.")
            results = results_in(into, operands, self._place)
        operands.merge(chosen, values, {name: [result] for name, result in results.items()}, self._place, seed)
        return {name: result.finish() for name, result in results.items()} if into is None else into

    def sweep(self, coefficients: Sequence[Sequence[float]], *, out_dtype: Any = None) -> list[dict[str, Any]]:
        """Makes M merged models from one read: base + sum_k c[m][k] (x_k - base); without a base sum_k c[m][k] x_k.

        Args:
            coefficients: (M, K) numbers: one row per merged model.
            out_dtype: floating-point dtype of the results. Default: the dtypes of the base, without one those of the
                first model.

        Returns:
            A list of M dictionaries from names to torch tensors. They share integer tensors.

        Raises:
            UsageError: a row has another length than K, or a coefficient is not a finite number.
            CheckpointError: a model has NaN or infinities.
        """
        rows = [tuple(float(c) for c in row) for row in coefficients]
        for row in rows:
            if len(row) != len(self._models):
                raise UsageError(f"a row of coefficients must have one number per model ({len(self)}), not {len(row)}.")
            if not all(abs(c) <= LARGEST for c in row):
                raise UsageError(f"coefficients must be numbers of at most {LARGEST:g} in magnitude, got {list(row)}.")
        if not rows:
            return []
        operands = self._operands(self._models, self._base)
        made = [operands.results(wanted_dtype(out_dtype)) for _ in rows]
        outputs = {
            name: [results[name] for results in made] if array.dtype.is_float else [made[0][name]]
            for name, array in operands.source.arrays.items()
        }
        values = {"nonfinite": "propagate" if self._known_finite() else "error"}
        method = Fixed(WeightedSum(sum(rows, ()), on_deltas=self._base is not None))
        operands.merge(method, values, outputs, self._place)
        return [{name: of[min(m, len(of) - 1)].finish() for name, of in outputs.items()} for m in range(len(rows))]

    def _operands(self, models: list[ArrayModel], reference: ArrayModel | None) -> Operands:
        if self._closed:
            raise UsageError("the pool is closed; make a new one.")
        key = (len(models), reference is not None)
        if key not in self._prepared:
            taken = self._base is not None
            self._prepared[key] = Operands(models, reference, self._source, take_from_source=taken)
        return self._prepared[key]

    def _known_finite(self) -> bool:
        """Whether all elements are finite. On a GPU each merge would have to wait to know, so the pool looks once."""
        if not self._place.in_place:
            return False
        if self._finite is None:
            import torch

            everything = [*self._models, *([self._base] if self._base is not None else [])]
            arrays = [cast(Array, a) for model in everything for a in model.arrays.values()]
            floats = [a.data for a in arrays if a.dtype.is_float]
            self._finite = not floats or bool(torch.stack([torch.isfinite(t).all() for t in floats]).all())
        return self._finite


def _place(device: str, backend: str, sources: Sequence[Source]) -> Place:
    """The place of the pool: the given device, else that of the first tensor."""
    first: Any = next((t for s in sources if isinstance(s, Mapping) for t in s.values()), None)
    if device == "auto" and getattr(first, "is_cuda", False):
        device = str(first.device)
    info = backends.choose(backend, device)
    if backends.computes_on_host_tensors(info):
        return Place(info, "cpu", True)
    if "cuda" not in info.devices:
        return Place(info, "cpu", False)
    if "," in device or device.endswith(":all"):
        raise UsageError(f"a pool is on one device, not on {device!r}; choose one, such as cuda:0.")
    try:
        import torch
    except ImportError:
        raise DeviceError("a pool on a GPU needs torch (pip install torch).") from None
    return Place(info, str(torch.device(device if ":" in device else "cuda:0")), True)


class _Loader:
    def __init__(self, place: Place, threads: int, opened: list[Checkpoint]) -> None:
        self._place, self._threads, self._opened = place, threads, opened
        self._inbound: Any = None

    def __call__(self, source: Source) -> dict[str, Any]:
        if isinstance(source, Mapping):
            odd = next((name for name, t in source.items() if not hasattr(t, "data_ptr")), None)
            if odd is not None:
                raise UsageError(f"tensor '{odd}' is a {type(source[odd]).__name__}; a pool needs torch tensors.")
            tensors = {name: t.to(self._place.device) for name, t in source.items()}
            return {name: Array.of(t, name, self._place) for name, t in tensors.items()}
        checkpoint = Checkpoint(str(source))
        self._opened.append(checkpoint)
        arrays = {name: FileArray(shard, entry) for name, (shard, entry) in checkpoint.entries.items()}
        found: dict[str, Any] = self._to_device(arrays) if self._place.in_place else arrays
        return found

    def _to_device(self, arrays: dict[str, FileArray]) -> dict[str, Array]:
        import torch

        from . import _core
        from .backends.gpu.staging import Inbound, Move
        from .backends.gpu.tables import ALIGN
        from .backends.gpu.torch_runtime import TorchRuntime

        runtime = TorchRuntime(self._place.device)
        moves, size = [], 0
        for array in arrays.values():
            view = array.view()
            moves.append(Move(view, 0, view.nbytes, size))
            size += -(-view.nbytes // ALIGN) * ALIGN
        try:
            arena = runtime.alloc(size)
            readers = _core.Pool(self._threads)
            stream = runtime.current_stream()
            with _core.Guard(readers.settle):
                self._inbound = self._inbound or Inbound(runtime, readers, lambda: False)
                self._inbound.bring([m for m in moves if m.nbytes], arena, stream)
                stream.record().synchronize()
        except MemoryError as error:
            raise DeviceError(f"{error}. The pool's models must fit into the device's memory.") from None
        loaded = {}
        for (name, array), move in zip(arrays.items(), moves, strict=True):
            flat = arena.tensor[move.offset : move.offset + move.nbytes]
            tensor = flat.view(getattr(torch, array.dtype.name)).view(array.shape)
            loaded[name] = Array.of(tensor, name, self._place)
        return loaded
