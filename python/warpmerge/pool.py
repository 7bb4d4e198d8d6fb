"""Pools: models in one place, merged again and again, for searches over merges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .engine.arrays import ArrayModel
from .engine.memory_merge import Fixed, Operands, wanted_dtype
from .engine.pool_models import Loader, pool_place
from .engine.state_dicts import Asked, listed
from .engine.targets import results_in
from .engine.values import resolve_values
from .errors import UsageError, shown
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
        sources = [] if isinstance(models, (str, Path, Mapping)) else listed(models, "models")
        if not sources:
            raise UsageError("models must be a list of at least one model.")
        asked = Asked()
        titled = [(model, f"model {number}") for number, model in enumerate(sources)]
        titled += [(base, "the base")] if base is not None else []
        given = [(asked.tensors(s, t) if isinstance(s, Mapping) else s, t) for s, t in titled]
        self._place = pool_place(device, backend, given)
        self._checkpoints: list[Checkpoint] = []
        self._held: tuple[list[ArrayModel], ArrayModel | None] | None = None  # models and base; None: closed
        self._prepared: dict[tuple[int, bool], Operands] = {}
        try:
            load = Loader(self._place, thread_count(threads), self._checkpoints)
            loaded = [load(source, title) for source, title in given]
            self._held = loaded[: len(sources)], loaded[-1] if base is not None else None
            for model in loaded:
                check_names(_source(*self._held), model)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Pool:
        self._open()
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Closes the files and lets go of the models. Merged tensors stay valid; the pool cannot be used any more."""
        self._held = None
        self._prepared.clear()
        for checkpoint in self._checkpoints:
            checkpoint.close()

    def _open(self) -> tuple[list[ArrayModel], ArrayModel | None]:
        """The models and the base. Raises UsageError if the pool is closed."""
        held = self._held  # asked once: another thread may close the pool
        if held is None:
            raise UsageError("the pool is closed; make a new one.")
        return held

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
        return len(self._open()[0])

    def merge(self, method: str, *, into: Any = None, out_dtype: Any = None, seed: int = 0, **parameters: Any) -> Any:
        """Merges all models of the pool.

        Args:
            method: name of the method.
            into: a torch module or a state dict with the pool's tensors, on the pool's device. The merged tensors are
                written into it, each in the dtype that it has there. None: a new state dict is made. Targets are
                contiguous torch tensors that do not overlap with each other or with the pool's own.
            out_dtype: floating-point dtype of a new state dict. Default: the dtypes of the base, without one those of
                the first model.
            seed: seed of methods that draw at random.
            **parameters: parameters of the method, as in `merge_tensors`.

        Returns:
            `into`, or a dictionary from names to torch tensors on the pool's device.

        Raises:
            UsageError: the method, a parameter or an argument is wrong, or the pool is closed.
            CheckpointError: tensors of `into` do not fit, or a model has NaN or infinities.
        """
        models, base = self._open()
        chosen, seed = find(method), checked_seed(seed)
        if chosen.auxiliary:
            raise UsageError(
                f"method '{chosen.name}' needs each model's {chosen.auxiliary[0].name}, but a pool holds models only; "
                "use merge_state_dicts or a recipe."
            )
        reference = base if chosen.base.is_reference else None
        if chosen.base is Base.REFERENCE and base is None:
            raise UsageError(f"method '{chosen.name}' needs a base, and this pool has none; give Pool a base.")
        if chosen.base is Base.ENDPOINT and base is not None:
            models = [base, *models]
        chosen.check_models(len(models))
        values = resolve_values(chosen, len(models), parameters, on_deltas=reference is not None)
        operands = self._operands(models, reference, base)
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
            UsageError: a row has another length than K, a coefficient is not a finite number, or the pool is closed.
            CheckpointError: a model has NaN or infinities.
        """
        models, base = self._open()
        try:
            rows = [tuple(float(c) for c in row) for row in coefficients]
        except (TypeError, ValueError, RuntimeError):  # RuntimeError: of a tensor that holds no numbers
            raise UsageError(f"coefficients must be rows of numbers, got {shown(coefficients)}.") from None
        for row in rows:
            if len(row) != len(models):
                raise UsageError(f"a row of coefficients needs one number per model ({len(models)}), not {len(row)}.")
            if not all(abs(c) <= LARGEST for c in row):
                raise UsageError(f"coefficients must be numbers of at most {LARGEST:g} in magnitude, got {list(row)}.")
        if not rows:
            return []
        operands = self._operands(models, base, base)
        made = [operands.results(wanted_dtype(out_dtype)) for _ in rows]
        outputs = {
            name: [results[name] for results in made] if array.dtype.is_float else [made[0][name]]
            for name, array in operands.source.arrays.items()
        }
        method = Fixed(WeightedSum(sum(rows, ()), on_deltas=base is not None))
        operands.merge(method, {"nonfinite": "error"}, outputs, self._place)
        return [{name: of[min(m, len(of) - 1)].finish() for name, of in outputs.items()} for m in range(len(rows))]

    def _operands(self, models: list[ArrayModel], reference: ArrayModel | None, base: ArrayModel | None) -> Operands:
        key = (len(models), reference is not None)
        if key not in self._prepared:
            source = _source(models, base)
            self._prepared[key] = Operands(models, reference, source, take_from_source=base is not None)
        return self._prepared[key]


def _source(models: Sequence[ArrayModel], base: ArrayModel | None) -> ArrayModel:
    """The model that has the results' names and dtypes."""
    return models[0] if base is None else base
