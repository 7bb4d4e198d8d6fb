"""One output tensor's work, as the engine hands it to a backend: where its inputs lie and where its result goes."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .dtypes import DType
from .methods import Method, TensorInfo
from .models.views import View
from .requests import Combine, Measure


@dataclass(frozen=True, slots=True)
class MemorySink:
    address: int
    owner: Any = None

    def write(self, data: memoryview) -> None:
        """Puts the whole result's bytes in place."""
        memoryview((ctypes.c_uint8 * data.nbytes).from_address(self.address)).cast("B")[:] = data


@dataclass(frozen=True, slots=True)
class DeviceSink:
    """Memory of the device on which the inputs lie."""

    address: int
    owner: Any = None


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


Sink = MemorySink | DeviceSink | FileSink


@dataclass(slots=True)
class TensorTask:
    """`inputs` are the K merged models' tensors, `base` the reference. `method` None: a copy.

    `sinks`: where the result goes; several for a sweep, one per output; none to be measured only.
    """

    info: TensorInfo
    method: Method | None
    values: Mapping[str, Any]
    inputs: list[View]
    base: View | None
    out_dtype: DType
    sinks: list[Sink]
    labels: list[str]  # names of the models, the base's last
    fp64: bool = False
    solved: Any = None  # the combination, where the method has taken its steps for the whole model
    cache: dict = field(default_factory=dict)  # for the backend: its own form of the operands
    flight: Any = None  # for a device backend: what holds the operands in device memory
    replaces: TensorTask | None = None  # the task with all inputs, which may be in device memory under its identity
    done: Any = None  # called by the engine with the digest when the result is complete

    @property
    def nbytes(self) -> int:
        """Bytes that one pass reads."""
        return sum(view.read_bytes for view in self.inputs) + (self.base.read_bytes if self.base else 0)


def same_bytes(views: list[View]) -> bool:
    """Whether all hold the same bytes; they must be of one size."""
    first, *others = (view.chunks(4 << 20) for view in views)
    return all(part == wanted for wanted, *parts in zip(first, *others, strict=True) for part in parts)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a request came to: a measurement, or the digest of the written tensor (None for results in memory).

    `nonfinite` counts NaN and infinite elements per input, the base last; empty if there are none.
    """

    value: Any
    nonfinite: tuple[int, ...] = ()


Request = Measure | Combine
Work = tuple[TensorTask, Request]
