"""What running means and variances have in common: a state, updated from one checkpoint after another."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from ..dtypes import FLOAT32, FLOAT64, DType
from ..engine.arrays import Array, ArrayModel, FileArray, Place, called
from ..engine.memory_merge import Fixed, Operands, wanted_dtype
from ..engine.results import Result, new_array
from ..engine.state_dicts import tensors_of
from ..errors import CheckpointError, UsageError
from ..models import Checkpoint, Shard
from ..plain import is_tensor
from ..plan.jobs import check_names, check_views
from ..requests import Combine, WeightedSum
from ..tasks import same_bytes
from .state_files import described, directory_targets, file_targets, in_memory, key, open_state, write_state

Source = str | Path | Mapping[str, Any]
Tensors = dict[str, Any]
STATE = "the state"
_ADVICE = re.compile("; (write|scale) .*|, or set .*")


class Running:
    """What is common to all: a state of one or more parts, each a tensor for each tensor of the checkpoints.

    An update makes the new state beside the old one, which it then replaces: an error leaves the state as it was. In
    memory it takes two states while it runs, and the state is where the last checkpoint was: on its GPU, or on the
    host. In a file it takes the memory of a merge of files, and room for two states on the disk.
    """

    parts: tuple[str, ...] = ("mean",)

    def __init__(self, *, file: str | Path | None = None, backend: str = "auto") -> None:
        """file: where the state is kept instead of in memory, each update on the disk when it returns. If the file
        exists, the object continues from it."""
        self._backend = backend
        self._state: dict[str, Tensors] = {}  # part -> tensors; integer tensors are in the first part alone
        self._numpy = False
        self._like: Path | None = None
        self._count = 0
        self._file = None if file is None else Path(file)
        self._shard: Shard | None = None  # of the file; open only while it is read
        if self._file is not None and self._file.exists():
            self._count, options, self._state, self._shard = open_state(self._file, type(self).__name__, self.parts)
            if options != self.options():
                raise UsageError(f"{self._file} was made with {options}, not with {self.options()}.")

    @property
    def count(self) -> int:
        """The number of checkpoints so far."""
        return self._count

    def __repr__(self) -> str:
        options = [f"{name}={value!r}" for name, value in self.options().items()]
        return f"{type(self).__name__}({', '.join(options)}) of {self.count} checkpoints"

    def options(self) -> dict[str, float]:
        """What the constructor takes, to be saved."""
        return {}

    def step(self) -> Combine:
        """The next state from the present one and a checkpoint."""
        raise NotImplementedError

    # --- updating ---------------------------------------------------------------------------------------------------

    def update(self, checkpoint: Source) -> None:
        """Takes one more checkpoint. An error leaves the state as it was.

        Args:
            checkpoint: a model directory, a Hugging Face id, a `.safetensors` file, or a mapping from names to tensors:
                torch tensors on one device, or numpy arrays. Names and shapes must be those of the first checkpoint;
                floating-point dtypes may differ. Integer and boolean tensors must be the same in all checkpoints.

        Raises:
            UsageError: the argument is no checkpoint.
            CheckpointError: tensors do not fit, are not finite or cannot be read.
            OutputError: the state's file cannot be written.
        """
        number = self.count + 1
        with self._opened(checkpoint, number) as (found, place, label), self._reading():
            if not found:
                raise CheckpointError(f"{label} holds no tensors.")
            first = next(iter(found.values()))
            state = [self._arrays(part, place, first) for part in self._state]
            self._check(found, state, label)
            operands, combine = self._operands(found, state, label)
            with self._following(found, state, number) as results:
                _merge(operands, combine, results, place)
        self._count = number
        if isinstance(checkpoint, Mapping):
            self._numpy = not _is_torch(first)

    @contextlib.contextmanager
    def _following(self, found: dict, state: list[dict], number: int) -> Iterator[dict[str, list[Any]]]:
        """Where the next state goes, by tensor and part. It is the state when the block ends without an error."""
        dtypes = {name: _state_dtype(name, [found, *state]) for name in found}
        parts = {name: self.parts if dtype.is_float else self.parts[:1] for name, dtype in dtypes.items()}
        if self._file is None:
            made = {n: [_result(found[n], dtypes[n], _is_torch(found[n])) for _ in of] for n, of in parts.items()}
            yield made
            finished = {n: dict(zip(parts[n], [r.finish() for r in of], strict=True)) for n, of in made.items()}
            self._state = {part: {n: of[part] for n, of in finished.items() if part in of} for part in self.parts}
            return
        specs = [(key(self.parts, p, n), dtypes[n], found[n].shape) for p in self.parts for n in found if p in parts[n]]
        kind = type(self).__name__
        with file_targets(self._file, specs, described(kind, number, self.options())) as targets:
            yield {n: [targets[key(self.parts, part, n)] for part in of] for n, of in parts.items()}
        *_, self._state, self._shard = open_state(self._file, kind, self.parts)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """The state's file may be read within."""
        shard = self._shard
        try:
            yield
        finally:
            if shard is not None:
                shard.file.put_away()

    def _operands(self, found: dict, state: list[dict], label: str) -> tuple[Operands, Combine]:
        """The first checkpoint becomes the mean, and 0 the other parts."""
        taken = ArrayModel(label, found)
        if not state:
            first: Any = WeightedSum((1.0,) + (0.0,) * (len(self.parts) - 1), on_deltas=False)
            return Operands([taken], None, taken, take_from_source=True), first
        combine: Any = self.step()
        mean = ArrayModel(STATE, state[0])
        if combine.on_deltas:
            return Operands([taken], mean, mean, take_from_source=True), combine
        others = [ArrayModel(STATE, {**state[0], **part}) for part in state[1:]]  # with the integer tensors
        return Operands([mean, *others, taken], None, mean, take_from_source=True), combine

    @contextlib.contextmanager
    def _opened(self, checkpoint: Source, number: int) -> Iterator[tuple[dict, Place, str]]:
        """The tensors of a checkpoint, where they are, and what to call it."""
        if isinstance(checkpoint, Mapping):
            label = f"checkpoint {number}"
            given = tensors_of(checkpoint, label)
            to_host = self._file is not None
            first = next(iter(given), "")
            place = Place.of(self._backend, None if to_host else given.get(first), called(first, label))
            yield {n: Array.of(t, n, place, label, move=to_host) for n, t in given.items()}, place, label
            return
        if not isinstance(checkpoint, (str, Path)):
            raise UsageError(
                f"a checkpoint is a path or a mapping from names to tensors, not a {type(checkpoint).__name__}."
            )
        path = Path(checkpoint)
        opened = Shard(path) if path.suffix == ".safetensors" else Checkpoint(str(checkpoint))
        try:
            if isinstance(opened, Shard):
                found = {name: FileArray(opened, entry) for name, entry in opened.entries.items()}
            else:
                found = {name: FileArray(shard, entry) for name, (shard, entry) in opened.entries.items()}
                if opened.is_quantized() and not all(array.dtype.is_float for array in found.values()):
                    raise CheckpointError(f"{checkpoint} is quantized, as its config.json says; dequantize it first.")
            yield found, Place.of(self._backend, None), str(checkpoint)
            self._like = self._like if isinstance(opened, Shard) else opened.path
        finally:
            opened.close()

    def _arrays(self, part: str, place: Place, like: Any = None) -> dict[str, Any]:
        """A part of the state, if it is in memory brought to where the array `like` is, or (None) to the host."""
        device = like.original.device if like is not None and _is_torch(like) and self._file is None else None
        return {
            name: t if isinstance(t, FileArray) else Array.of(_moved(t, device), name, place)
            for name, t in self._state[part].items()
        }

    def _check(self, found: dict, state: list[dict], label: str) -> None:
        for name, array in found.items():
            if array.dtype.is_quantized:
                raise CheckpointError(f"tensor '{name}' is quantized ({array.dtype}) in {label}; dequantize it first.")
        if not state:
            return
        mean, taken = ArrayModel(STATE, state[0]), ArrayModel(label, found)
        check_names(mean, taken)
        check_views(mean.names, mean, mean.column(mean.names), taken, taken.column(mean.names))
        for name, array in found.items():
            if not array.dtype.is_float and not same_bytes([array.view(), state[0][name].view()]):
                raise CheckpointError(
                    f"tensor '{name}' ({array.dtype}) differs in {label} and cannot be averaged; leave it out."
                )

    # --- results ----------------------------------------------------------------------------------------------------

    def mean(self, *, dtype: Any = None) -> Tensors:
        """The mean as a new state dict.

        Args:
            dtype: floating-point dtype of the result. Default: the state's, float32 or float64.

        Returns:
            A dictionary from names to tensors: torch tensors or numpy arrays, as in the last mapping given; torch
            tensors if there were only files.

        Raises:
            UsageError: there were no checkpoints.
        """
        return self.export(self.parts[0], 1.0, dtype)

    def write(self, path: str | Path, *, dtype: Any = None, like: str | Path | None = None) -> None:
        """Writes the mean.

        Args:
            path: one file if it ends with `.safetensors`, else a model directory. An existing file is replaced. An
                existing directory must be empty.
            dtype: floating-point dtype of the tensors. Default: the state's.
            like: the model directory whose sidecar files are copied. Default: the last checkpoint that was a directory.

        Raises:
            UsageError: there were no checkpoints.
            OutputError: the output cannot be written. An existing file stays as it was.
        """
        self.write_part(self.parts[0], 1.0, path, dtype, like)

    def save(self, path: str | Path) -> None:
        """Writes the state to one safetensors file. `load` goes on from it with the same bits.

        Args:
            path: the file. It appears when it is complete; an existing file is replaced.

        Raises:
            UsageError: there were no checkpoints.
            OutputError: the file cannot be written.
        """
        self.need(1)
        place = Place.of(self._backend, None)
        with self._reading():
            arrays = {key(self.parts, p, n): a for p in self.parts for n, a in self._arrays(p, place).items()}
            write_state(Path(path), described(type(self).__name__, self.count, self.options()), arrays)

    @classmethod
    def load(cls, path: str | Path, *, backend: str = "auto") -> Any:
        """Loads the object that `save` wrote to a file, into memory.

        Args:
            path: the file.
            backend: `auto`, `cuda`, `triton`, `cpu` or `torch`.

        Raises:
            CheckpointError: the file is damaged, or holds another kind of state.
        """
        count, options, state, _ = open_state(Path(path), cls.__name__, cls.parts)
        try:
            made = cls(**options, backend=backend)
            made._state = {part: {name: in_memory(a) for name, a in of.items()} for part, of in state.items()}
        except (TypeError, UsageError):
            raise CheckpointError(f"{path}: its header is damaged; use another copy.") from None
        made._count = count
        return made

    def need(self, count: int) -> None:
        if self.count < count:
            raise UsageError(f"{self!r} needs at least {count}: call update first.")

    def export(self, part: str, factor: float, dtype: Any) -> Tensors:
        """A part times the factor as a state dict."""
        self.need(1)
        tensor = next(iter(self._state[part].values()), None)
        place = Place.of(self._backend, tensor if is_tensor(tensor) else None)
        like = Array.of(tensor, "", place) if is_tensor(tensor) else None
        with self._reading():
            arrays = self._arrays(part, place, like)
            results = {n: [_result(a, _out_dtype(a, dtype), not self._numpy)] for n, a in arrays.items()}
            _scale(arrays, factor, place, results)
        return {name: result.finish() for name, [result] in results.items()}

    def write_part(self, part: str, factor: float, path: str | Path, dtype: Any, like: str | Path | None) -> None:
        """Writes a part times the factor."""
        self.need(1)
        path, place = Path(path), Place.of(self._backend, None)
        like = self._like if like is None else Path(like)
        with self._reading():
            arrays = self._arrays(part, place)
            specs = [(name, _out_dtype(array, dtype), array.shape) for name, array in arrays.items()]
            single = path.suffix == ".safetensors"
            with file_targets(path, specs) if single else directory_targets(path, specs, like) as targets:
                _scale(arrays, factor, place, {name: [target] for name, target in targets.items()})


def _scale(arrays: dict[str, Array], factor: float, place: Place, results: Mapping[str, list[Any]]) -> None:
    """factor x, rounded once more to the dtypes of the results."""
    model = ArrayModel(STATE, arrays)
    operands = Operands([model], None, model, take_from_source=True)
    _merge(operands, WeightedSum((factor,), on_deltas=False), results, place)


def _merge(operands: Operands, combine: Combine, results: Mapping[str, list[Any]], place: Place) -> None:
    """Raises CheckpointError for what is not finite, without the advice of a merge: there are no parameters here."""
    try:
        operands.merge(Fixed(combine), {"nonfinite": "error"}, results, place)
    except CheckpointError as error:
        raise CheckpointError(_ADVICE.sub("", str(error)).rstrip(".") + ".") from None


def _state_dtype(name: str, parts: Iterable[dict]) -> DType:
    """Of the next state: what the checkpoint and the state have, but at least float32."""
    dtypes = [part[name].dtype for part in parts if name in part]
    return dtypes[0] if not dtypes[0].is_float else FLOAT64 if FLOAT64 in dtypes else FLOAT32


def _out_dtype(array: Array, wanted: Any) -> DType:
    return (wanted_dtype(wanted) or array.dtype) if array.dtype.is_float else array.dtype


def _is_torch(array: Array | FileArray) -> bool:
    return is_tensor(getattr(array, "original", None))


def _result(like: Array | FileArray, dtype: DType, torch: bool) -> Result:
    """A new tensor of torch where `like` is, or else an array of numpy: files need no torch."""
    if not torch:
        return new_array(like.shape, dtype)
    return like.empty(dtype) if _is_torch(like) else FileArray.empty(cast(Any, like), dtype)


def _moved(tensor: Any, device: Any) -> Any:
    """On a torch device, or (None) on the host, as what it is."""
    if device is not None:
        import torch

        return torch.as_tensor(tensor).to(device)
    return tensor.cpu() if is_tensor(tensor) else tensor
