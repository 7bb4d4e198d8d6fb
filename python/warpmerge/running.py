"""What running means and variances have in common: a state, updated from one checkpoint after another."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .arrays import Array, FileArray, Place, Result
from .checkpoint import Checkpoint, Shard
from .dtypes import FLOAT32, FLOAT64, DType
from .errors import CheckpointError, RecipeError
from .methods import TensorInfo
from .methods.base import Steps
from .ops import Combine, WeightedSum
from .state_files import directory_targets, file_targets, read_state, write_state
from .tasks import same_bytes
from .tensors import Operands, wanted_dtype

Source = str | Path | Mapping[str, Any]
Tensors = dict[str, Any]
STATE = "the state"


class Running:
    """What is common to all: a state of one or more parts, each a tensor for each tensor of the checkpoints.

    An update makes the new state beside the old one and then takes its place: an error leaves the state as it was, and
    memory is two states (a variance's has two parts) while it runs. The state is held where the last checkpoint was: on
    its GPU, or on the host.
    """

    parts: tuple[str, ...] = ("mean",)

    def __init__(self, *, backend: str = "auto") -> None:
        self._backend = backend
        self._state: dict[str, Tensors] = {}  # part -> tensors; integer tensors are in the first part alone
        self._numpy = False
        self._like: Path | None = None
        self._count = 0

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
        """Takes one more checkpoint: a model directory, a hub id, a safetensors file, or name -> tensor.

        Tensors are torch tensors on one device, or numpy arrays; their names and shapes are those of the first
        checkpoint, in any floating-point dtypes. Integer and boolean tensors have to be the same in all. Raises
        CheckpointError if they do not fit, are not finite or cannot be read, RecipeError for what is no checkpoint.
        """
        number = self.count + 1
        with self._opened(checkpoint, number) as (found, place, label):
            if not found:
                raise CheckpointError(f"{label} holds no tensors.")
            first = next(iter(found.values()))
            state = [self._arrays(part, place, getattr(first, "original", None)) for part in self._state]
            self._check(found, state, label)
            results = {
                name: [_empty(array, dtype) for _ in (self.parts if dtype.is_float else self.parts[:1])]
                for name, array in found.items()
                for dtype in [_state_dtype(name, [found, *state])]
            }
            operands, combine, labels = self._operands(found, state, label)
            try:
                place.run(operands.tasks(_Step(combine), {"nonfinite": "error"}, results, labels, 0))
            except OSError as error:
                raise CheckpointError(f"cannot read {label}: {error.strerror or error}.") from None
            except CheckpointError as error:  # of elements that are not finite; here is no parameter that allows them
                raise CheckpointError(str(error).partition(", or set the parameter")[0].rstrip(".") + ".") from None
            finished = {name: [result.finish() for result in of] for name, of in results.items()}
        self._state = {
            part: {name: of[p] for name, of in finished.items() if p < len(of)} for p, part in enumerate(self.parts)
        }
        self._count = number
        if isinstance(checkpoint, Mapping):
            self._numpy = isinstance(first.original, np.ndarray)

    def _operands(self, found: dict, state: list[dict], label: str) -> tuple[Operands, Combine, list[str]]:
        """The first checkpoint becomes the mean, and 0 the other parts."""
        if not state:
            combine = WeightedSum((1.0,) + (0.0,) * (len(self.parts) - 1), relative=False)
            return Operands([found], None, found, must_agree=False), combine, [label]
        combine = self.step()
        if combine.relative:
            return Operands([found], state[0], state[0], must_agree=False), combine, [label, STATE]
        others = [{**state[0], **part} for part in state[1:]]  # with the integer tensors
        models = [state[0], *others, found]
        return Operands(models, None, state[0], must_agree=False), combine, [STATE] * len(state) + [label]

    @contextlib.contextmanager
    def _opened(self, checkpoint: Source, number: int) -> Iterator[tuple[dict, Place, str]]:
        """The tensors of a checkpoint, where they are, and what to call it."""
        if isinstance(checkpoint, Mapping):
            place = Place.of(self._backend, next(iter(checkpoint.values()), None))
            yield {n: Array.of(t, n, place) for n, t in checkpoint.items()}, place, f"checkpoint {number}"
            return
        if not isinstance(checkpoint, (str, Path)):
            raise RecipeError(
                f"a checkpoint is a path or a mapping from names to tensors, not a {type(checkpoint).__name__}."
            )
        path = Path(checkpoint)
        opened = Shard(path) if path.suffix == ".safetensors" else Checkpoint(str(checkpoint))
        try:
            if isinstance(opened, Shard):
                found = {name: FileArray(opened, entry) for name, entry in opened.entries.items()}
            else:
                found = {name: FileArray(shard, entry) for name, (shard, entry) in opened.entries.items()}
            yield found, Place.of(self._backend, None), str(checkpoint)
            self._like = self._like if isinstance(opened, Shard) else opened.path
        finally:
            opened.close()

    def _arrays(self, part: str, place: Place, like: Any) -> dict[str, Array]:
        """A part of the state, brought to where the tensor `like` is, or to the host."""
        device = like.device if hasattr(like, "data_ptr") else None
        return {name: Array.of(_moved(t, device), name, place) for name, t in self._state[part].items()}

    def _check(self, found: dict, state: list[dict], label: str) -> None:
        for name, array in found.items():
            if array.dtype.is_quantized:
                raise CheckpointError(f"tensor '{name}' is quantized ({array.dtype}) in {label}; dequantize it first.")
        if not state:
            return
        odd = sorted(found.keys() ^ state[0].keys())
        if odd:
            what = "lacks the" if odd[0] in state[0] else "has a"
            raise CheckpointError(f"{label} {what} tensor '{odd[0]}', unlike the checkpoints before it.")
        for name, array in found.items():
            known = state[0][name]
            kinds = (known.dtype.is_float, array.dtype.is_float)
            if known.shape != array.shape or kinds[0] != kinds[1] or not (kinds[0] or known.dtype == array.dtype):
                raise CheckpointError(
                    f"tensor '{name}' is {array.dtype} {list(array.shape)} in {label}, "
                    f"but {known.dtype} {list(known.shape)} in {STATE}."
                )
            if not kinds[0] and not same_bytes([array.buffer(), known.buffer()]):
                raise CheckpointError(
                    f"tensor '{name}' ({array.dtype}) differs in {label} and cannot be averaged; leave it out."
                )

    # --- results ----------------------------------------------------------------------------------------------------

    def mean(self, *, dtype: Any = None) -> Tensors:
        """The mean as a new state dict, of the kind (torch or numpy) that the last tensors given had; torch's if there
        were only files. dtype: of the floating-point tensors, rounded once; default: the state's."""
        return self.export(self.parts[0], 1.0, dtype)

    def write(self, path: str | Path, *, dtype: Any = None, like: str | Path | None = None) -> None:
        """Writes the mean: as one file if the path ends with .safetensors, else as a model directory.

        dtype: as in `mean`. like: the model directory whose config, tokenizer and other small files go with it;
        default: that of the last checkpoint that was one. An existing file is replaced, an existing directory has to
        be empty. Raises OutputError if it cannot be written; what is there then is as it was.
        """
        self.write_part(self.parts[0], 1.0, path, dtype, like)

    def save(self, path: str | Path) -> None:
        """Writes the state to one safetensors file, from which `load` goes on bit for bit. The file appears when it is
        complete; one that is there is replaced. Raises OutputError if it cannot be written."""
        self.need(1)
        tensors = {
            f"{part}:{name}" if len(self.parts) > 1 else name: _moved(tensor, None)
            for part in self.parts
            for name, tensor in self._state[part].items()
        }
        write_state(Path(path), type(self).__name__, self.count, self.options(), tensors)

    @classmethod
    def load(cls, path: str | Path, *, backend: str = "auto") -> Any:
        """The object that was saved to a file. Raises CheckpointError if the file is damaged, or holds another kind of
        state or none."""
        count, options, tensors = read_state(Path(path), cls.__name__)
        try:
            made = cls(**options, backend=backend)
            if len(cls.parts) == 1:
                made._state = {cls.parts[0]: tensors}
            else:
                made._state = {part: {} for part in cls.parts}
                for name, tensor in tensors.items():
                    part, _, name = name.partition(":")
                    made._state[part][name] = tensor
            first, *others = made._state.values()
            floats = {n: (t.shape, t.dtype) for n, t in first.items() if t.dtype.kind == "f"}
            if any({n: (t.shape, t.dtype) for n, t in part.items()} != floats for part in others):
                raise KeyError
        except (TypeError, KeyError, RecipeError):
            raise CheckpointError(f"{path}: the state is not that of a {cls.__name__}; it is damaged.") from None
        made._count = count
        return made

    def need(self, count: int) -> None:
        if self.count < count:
            raise RecipeError(f"{self!r} needs at least {count}: call update first.")

    def export(self, part: str, factor: float, dtype: Any) -> Tensors:
        self.need(1)
        convert = _as_numpy if self._numpy else _as_torch
        tensors = {name: convert(tensor) for name, tensor in self._state[part].items()}
        place = Place.of(self._backend, next(iter(tensors.values())))
        arrays = {name: Array.of(tensor, name, place) for name, tensor in tensors.items()}
        results = {name: [array.empty(_out_dtype(array, dtype))] for name, array in arrays.items()}
        _scale(arrays, factor, place, results)
        return {name: result.finish() for name, [result] in results.items()}

    def write_part(self, part: str, factor: float, path: str | Path, dtype: Any, like: str | Path | None) -> None:
        self.need(1)
        place = Place.of(self._backend, None)
        arrays = {name: Array.of(_moved(tensor, None), name, place) for name, tensor in self._state[part].items()}
        specs = [(name, _out_dtype(array, dtype), array.shape) for name, array in arrays.items()]
        like = self._like if like is None else Path(like)
        single = Path(path).suffix == ".safetensors"
        with file_targets(Path(path), specs) if single else directory_targets(Path(path), specs, like) as targets:
            _scale(arrays, factor, place, {name: [target] for name, target in targets.items()})


class _Step:
    """Stands in for a method: one combination of all tensors."""

    name = "running"

    def __init__(self, combine: Combine) -> None:
        self._combine = combine

    def steps(self, tensor: TensorInfo, p: Mapping[str, Any]) -> Steps:
        return self._combine
        yield


def _scale(arrays: dict[str, Array], factor: float, place: Place, results: Mapping[str, list[Any]]) -> None:
    """factor x, rounded once more to the dtypes of the results."""
    operands = Operands([arrays], None, arrays, must_agree=False)
    step = _Step(WeightedSum((factor,), relative=False))
    place.run(operands.tasks(step, {"nonfinite": "propagate"}, results, [STATE], 0))


def _state_dtype(name: str, parts: Iterable[dict]) -> DType:
    """Of the next state: what the checkpoint and the state have, but at least float32."""
    dtypes = [part[name].dtype for part in parts if name in part]
    return dtypes[0] if not dtypes[0].is_float else FLOAT64 if FLOAT64 in dtypes else FLOAT32


def _out_dtype(array: Array, wanted: Any) -> DType:
    return (wanted_dtype(wanted) or array.dtype) if array.dtype.is_float else array.dtype


def _empty(like: Array | FileArray, dtype: DType) -> Result:
    """State that is made from files needs no torch."""
    return (
        Result(np.empty(like.shape, dtype.name), dtype, None, False)
        if isinstance(like, FileArray)
        else like.empty(dtype)
    )


def _moved(tensor: Any, device: Any) -> Any:
    """On a torch device, or (None) on the host, as what it is."""
    if device is not None:
        return _as_torch(tensor).to(device)
    return tensor if isinstance(tensor, np.ndarray) else tensor.cpu()


def _as_numpy(tensor: Any) -> np.ndarray:
    return tensor if isinstance(tensor, np.ndarray) else tensor.cpu().numpy()


def _as_torch(tensor: Any) -> Any:
    import torch

    return torch.as_tensor(tensor)
