"""One output tensor's work, as the engine hands it to a backend: where its inputs lie and where its result goes."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from . import _core
from .dtypes import DType
from .methods import Method, TensorInfo
from .ops import Combine, Measure


@dataclass(frozen=True, slots=True)
class Buffer:
    """Contiguous elements in memory; `owner` keeps them alive."""

    address: int
    nbytes: int
    dtype: DType
    owner: Any = None

    def view(self) -> memoryview:
        """The memory itself, as bytes."""
        if self.nbytes == 0:
            return memoryview(b"")
        return memoryview((ctypes.c_uint8 * self.nbytes).from_address(self.address)).cast("B")


@dataclass(frozen=True, slots=True)
class MemorySink:
    address: int
    owner: Any = None

    def write(self, data: memoryview) -> None:
        """Puts the whole result's bytes in place."""
        Buffer(self.address, data.nbytes, None).view()[:] = data


@dataclass(frozen=True, slots=True)
class FileSink:
    fd: int
    offset: int
    background: Any = None  # native Background that starts writing back, or None

    def write(self, data: memoryview) -> None:
        at = self.offset
        while data:
            written = os.pwrite(self.fd, data, at)
            data, at = data[written:], at + written


@dataclass(slots=True)
class TensorTask:
    """`inputs` are the K merged models' tensors, `base` the reference. `method` None: a copy."""

    info: TensorInfo
    method: Method | None
    values: Mapping[str, Any]
    inputs: list[Buffer]
    base: Buffer | None
    out_dtype: DType
    sink: MemorySink | FileSink | None
    labels: list[str]  # names of the models, the base's last
    wide: bool = False
    mapped: bool = False
    cache: dict = field(default_factory=dict)  # for the backend: its own form of the operands
    done: Any = None  # called by the engine with the digest when the result is complete

    @property
    def nbytes(self) -> int:
        """Bytes that one pass reads."""
        return sum(b.nbytes for b in self.inputs) + (self.base.nbytes if self.base else 0)


def same_bytes(buffers: list[Buffer]) -> bool:
    """Whether all hold the same bytes; they must be of one size."""
    return _core.equal([b.address for b in buffers], buffers[0].nbytes)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a request came to: a measurement, or the digest of the written tensor (None for results in memory).

    `nonfinite` counts NaN and infinite elements per input, the base last; empty if there are none.
    """

    value: Any
    nonfinite: tuple[int, ...] = ()


Request = Measure | Combine
Work = tuple[TensorTask, Request]
