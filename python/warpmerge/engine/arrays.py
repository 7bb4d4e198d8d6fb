"""Torch tensors and numpy arrays as operands of a merge: where they are, and who merges them there."""

from __future__ import annotations

import bisect
import contextlib
import functools
import itertools
import os
import re
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from .. import backends
from ..dtypes import BY_NAME, DType
from ..errors import DeviceError, UsageError
from ..models.view_columns import ListColumn
from ..models.views import FileRegion, Memory
from ..plain import check_tensor, is_tensor, plain
from .results import Result, first_line, new_array, new_tensor
from .state_dicts import tensors_of

_shared: dict[tuple, Any] = {}
_locks: dict[int, threading.Lock] = {}
_inside = threading.local()  # `turn`: a weak reference to the Turn of the call that this thread is within


def _lock_of(process: int) -> threading.Lock:
    """A lock of this process: one that was held while it was forked would never be released."""
    return _locks.setdefault(process, threading.Lock())


class Turn:
    """Lives as long as a call has a shared backend for itself: an interrupt may keep the call from saying its end."""

    def __init__(self) -> None:
        self.process = os.getpid()

    @staticmethod
    def under_way() -> bool:
        turn = getattr(_inside, "turn", lambda: None)()
        return turn is not None and turn.process == os.getpid()


class Place:
    """Where the tensors of a call are, and who merges them. `in_place`: on their device, without copies."""

    def __init__(self, info: backends.BackendInfo, device: str, in_place: bool) -> None:
        self.info, self.device, self.in_place = info, device, in_place

    @classmethod
    def of(cls, backend: str, array: Any, what: str = "a tensor") -> Place:
        """`array`: one of the tensors, which messages call `what`; the others must be where it is."""
        if is_tensor(array):
            check_tensor(array, what)
        device = _device_of(array)
        automatic = backends.is_automatic(backend)
        if device == "cpu":
            info = backends.choose(backend, "cpu" if automatic else "auto")
            return cls(info, device, is_tensor(array) and backends.computes_on_host_tensors(info))
        try:
            info = backends.choose(backend, device if automatic else "auto")
        except UsageError:
            if not automatic:
                raise
            info = backends.choose("auto", "cpu")  # by way of the host's memory
        return cls(info, device, "cuda" in info.devices)

    def backend(self) -> Any:
        """One instance per backend, device and process: threads do not survive a fork."""
        process, isa = os.getpid(), os.environ.get("WARPMERGE_ISA")
        key = (process, isa, self.info.name, self.device, self.in_place)
        with _lock_of(process):
            if key not in _shared:
                for other in [k for k in _shared if k[:2] != (process, isa)]:
                    del _shared[other]
                _shared[key] = (
                    backends.create_in_place(self.info, self.device) if self.in_place else backends.create(self.info)
                )
            return _shared[key]

    @contextlib.contextmanager
    def turn(self) -> Iterator[Any]:
        """The backend, for the caller alone.

        Calls from several threads take turns: an error cancels all work of a backend, and one call already uses the
        whole device. In place there is nothing to share. A call from within another, as a method's function in torch
        can make, gets a backend of its own.
        """
        if self.in_place:
            yield self.backend()
        elif Turn.under_way():
            with contextlib.closing(backends.create(self.info)) as own:
                yield own
        else:
            shared = self.backend()
            with _lock_of(os.getpid()):
                turn: Turn | None = Turn()
                _inside.turn = weakref.ref(turn)
                try:
                    yield shared
                finally:
                    turn = None  # a traceback may keep this frame


def _device_of(array: Any) -> str:
    return str(array.device) if is_tensor(array) else "cpu"


def _contiguous(array: Any, place: Place) -> Any:
    if isinstance(array, np.ndarray):
        return np.ascontiguousarray(array).reshape(array.shape)  # of a scalar it makes a row
    data = array.detach()
    return (data.to(place.device) if place.in_place else data.cpu()).contiguous()


class Array:
    """A torch tensor or numpy array seen as contiguous memory: `data` on the host, or in place on its device.

    `original` is the caller's tensor, or what it became when it was brought here.
    """

    def __init__(self, original: Any, data: Any, dtype: DType, in_place: bool) -> None:
        self.original, self.data, self.dtype, self.in_place = original, data, dtype, in_place
        self.shape = tuple(original.shape)

    @classmethod
    def of(cls, array: Any, name: str, place: Place, title: str = "", *, move: bool = False) -> Array:
        """The tensor of that name as an operand.

        Args:
            array: the tensor.
            name: its name in the model.
            place: where it is, or (`move`) where it is brought to and stays.
            title: what messages call the model.

        Raises:
            UsageError: it is somewhere else, or its memory is not its values.
            DeviceError: there is no memory for a copy.
        """
        what = called(name, title)
        try:
            found = plain(array, what)
            if not move and _device_of(found) != place.device:
                raise UsageError(
                    f"{what} is on {_device_of(found)}, others are on {place.device}; move all to one device."
                )
            data = _contiguous(found, place)
        except (MemoryError, RuntimeError, AssertionError) as error:  # the last one: of a mode of torch that fakes
            raise DeviceError(f"{what} cannot be copied: {first_line(error)}.") from None
        dtype = dtype_of(found.dtype)
        if dtype is None:
            raise UsageError(f"{what} has the dtype {found.dtype}, which cannot be merged; convert it first.")
        given = array if is_tensor(array) else np.asarray(array)
        return cls(data if move else given, data, dtype, place.in_place)

    @property
    def identity(self) -> tuple:
        return identity(self.original)

    def view(self) -> Memory:
        if isinstance(self.data, np.ndarray):
            return Memory(self.dtype, self.shape, self.data.ctypes.data, self.data)
        device = str(self.data.device) if self.in_place else None
        return Memory(self.dtype, self.shape, self.data.data_ptr(), self.data, device)

    def empty(self, dtype: DType) -> Result:
        if isinstance(self.data, np.ndarray):
            return new_array(self.shape, dtype, self.data.dtype if dtype == self.dtype else None)
        return new_tensor(self.shape, dtype, self.data.device, self.original.device, self.in_place)


class FileArray:
    """A tensor in an open safetensors file, as an operand like `Array`."""

    def __init__(self, shard: Any, entry: Any) -> None:
        self._shard, self._entry = shard, entry
        self.dtype, self.shape = entry.dtype, entry.shape

    @property
    def identity(self) -> tuple:
        return ("file", str(self._shard.path), self._entry.offset, self.shape, self.dtype.name)

    def view(self) -> FileRegion:
        return FileRegion(self.dtype, self.shape, self._shard.file, self._entry.offset)

    def empty(self, dtype: DType) -> Result:
        return new_tensor(self.shape, dtype, "cpu")


# How names of tensors that are codes end: of bitsandbytes, GPTQ and AWQ, compressed-tensors, HQQ.
_CODES = re.compile(r"(^|\.)(bitsandbytes__\w+|SCB|qweight|weight_packed|W_q)$")


class ArrayModel:
    """Named tensors of one place as a model (models.view_columns.Model).

    Args:
        title: what messages call it.
        arrays: the tensors.
        quantized: whether it is known that the weights are codes; otherwise their names say so.
    """

    def __init__(self, title: str, arrays: Mapping[str, Array | FileArray], quantized: bool = False) -> None:
        self.title, self.arrays, self._quantized = title, arrays, quantized
        self.names = list(arrays)
        self._listed: Sequence[str] = []
        self._column = ListColumn([])

    @classmethod
    def of(cls, tensors: Mapping[str, Any], title: str, place: Place) -> ArrayModel:
        """Tensors and arrays. They are held as long as the model is, as freed ones would lend their addresses to the
        next."""
        return cls(title, {name: Array.of(t, name, place, title) for name, t in tensors_of(tensors, title).items()})

    def column(self, names: Sequence[str]) -> ListColumn:
        """The views of these tensors, in this order; rows of names that the model lacks must not be used."""
        if names != self._listed:  # kept: a pool merges the same tensors again and again
            found = map(self.arrays.get, names)
            self._column = ListColumn([None if array is None else array.view() for array in found])
            self._listed = names
        return self._column

    def is_quantized(self) -> bool:
        return self._quantized or any(map(_CODES.search, self.names))


class Ranges:
    """Ranges of memory as (address, bytes)."""

    def __init__(self, ranges: Iterable[tuple[int, int]]) -> None:
        found = sorted((start, start + nbytes) for start, nbytes in ranges if nbytes)
        self._starts = [start for start, _ in found]
        self._ends = list(itertools.accumulate((end for _, end in found), max))  # of all up to this one

    def overlap(self, start: int, nbytes: int) -> bool:
        """Whether a byte of this range is in one of them."""
        before = bisect.bisect_left(self._starts, start + nbytes)  # those that begin before its end
        return nbytes > 0 and before > 0 and self._ends[before - 1] > start


def identity(array: Any) -> tuple:
    """Equal for two views of the same elements, while both exist: the address of a contiguous copy means nothing.

    Of plain numbers and texts: Python need not look for circles in a hundred thousand of them."""
    shape = tuple(array.shape)
    if isinstance(array, np.ndarray):
        return ("numpy", array.__array_interface__["data"][0], shape, array.strides, array.dtype.str, array.dtype.name)
    return (str(array.device), array.data_ptr(), shape, array.stride(), array.dtype, array.is_neg(), array.is_conj())


def called(name: str, title: str) -> str:
    """What messages call a tensor of a model."""
    return (f"tensor '{name}'" if name else "the tensor") + (f" of {title}" if title else "")


@functools.lru_cache(typed=True)
def dtype_of(element: Any) -> DType | None:
    """Our type for one of torch's or numpy's."""
    return BY_NAME.get(element.name if isinstance(element, np.dtype) else str(element).removeprefix("torch."))
