"""The models of a pool: where they are to be, and how they get there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import backends
from ..errors import DeviceError, UsageError
from ..models import Checkpoint
from ..plain import check_tensor, is_tensor
from .arrays import Array, ArrayModel, FileArray, Place, called, identity


def pool_place(device: str, backend: str, sources: Sequence[tuple[Any, str]]) -> Place:
    """The place of the pool: the given device, else that of the first tensor."""
    tensors = ((t, called(name, title)) for s, title in sources if isinstance(s, dict) for name, t in s.items())
    first: Any
    first, what = next(tensors, (None, ""))
    if is_tensor(first) and isinstance(device, str) and device == "auto":
        check_tensor(first, what)
        device = str(first.device) if first.is_cuda else device
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


class Loader:
    """Loads sources. One that comes again is not loaded again."""

    def __init__(self, place: Place, threads: int, opened: list[Checkpoint]) -> None:
        self._place, self._threads, self._opened = place, threads, opened
        self._inbound: Any = None
        self._readers: Any = None
        self._loaded: dict[int | str, tuple[dict[str, Any], bool]] = {}  # and whether they are codes

    def __call__(self, source: Any, title: str) -> ArrayModel:
        if not isinstance(source, (dict, str, Path)):
            raise UsageError(f"{title} is a {type(source).__name__}; give a directory, a hub id or a state dict.")
        key = id(source) if isinstance(source, dict) else str(source)
        if key not in self._loaded:
            self._loaded[key] = self._tensors(source, title) if isinstance(source, dict) else self._files(str(source))
        arrays, quantized = self._loaded[key]
        return ArrayModel(title, arrays, quantized)

    def _tensors(self, source: dict[str, Any], title: str) -> tuple[dict[str, Any], bool]:
        """Names that share a tensor share what it becomes."""
        found: dict[str, Any] = {}
        shared: dict[tuple, Array] = {}
        for name, tensor in source.items():
            what = called(name, title)
            if not is_tensor(tensor):
                raise UsageError(f"{what} is a {type(tensor).__name__}; a pool needs torch tensors.")
            array = Array.of(tensor, name, self._place, title, move=True)
            found[name] = shared.setdefault(identity(tensor), array)
        return found, False

    def _files(self, source: str) -> tuple[dict[str, Any], bool]:
        checkpoint = Checkpoint(source)
        self._opened.append(checkpoint)
        arrays = {name: FileArray(shard, entry) for name, (shard, entry) in checkpoint.entries.items()}
        found: dict[str, Any] = self._to_device(arrays) if self._place.in_place else arrays
        return found, checkpoint.is_quantized()

    def _to_device(self, arrays: dict[str, FileArray]) -> dict[str, Array]:
        import torch

        from .. import _core
        from ..backends.gpu.staging import Inbound, Move
        from ..backends.gpu.tables import ALIGN
        from ..backends.gpu.torch_runtime import TorchRuntime

        runtime = TorchRuntime(self._place.device)
        moves, size = [], 0
        for array in arrays.values():
            view = array.view()
            moves.append(Move(view, 0, view.nbytes, size))
            size += -(-view.nbytes // ALIGN) * ALIGN
        try:
            arena = runtime.alloc(size)
            self._readers = self._readers or _core.Pool(self._threads)
            stream = runtime.current_stream()
            with _core.Guard(self._readers.settle):
                self._inbound = self._inbound or Inbound(runtime, self._readers, lambda: False)
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
