"""One output tensor's work, as the engine hands it to a backend: where its inputs lie and where its result goes."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..dtypes import DType
from ..methods import Method, TensorInfo
from ..requests import Combine, Measure


@dataclass(frozen=True, slots=True)
class Buffer:
    """Contiguous elements: in memory at `address`, or in the open file `fd` at `offset`. `owner` keeps either alive.

    `device`: None for the host's memory; else the device whose memory it is, such as "cuda:0", and `owner` is a torch
    tensor there.
    """

    nbytes: int
    dtype: DType
    address: int = 0
    fd: int = -1
    offset: int = 0
    owner: Any = None
    device: str | None = None

    def read(self, start: int = 0, nbytes: int | None = None) -> bytes | memoryview:
        """The bytes [start, start + nbytes), all of them by default. Raises OSError (EFAULT) if they cannot be read."""
        nbytes = self.nbytes - start if nbytes is None else nbytes
        if nbytes == 0:
            return b""
        if self.device is not None:
            import torch

            return memoryview(self.owner.reshape(-1).view(torch.uint8)[start : start + nbytes].cpu().numpy())
        if self.fd < 0:
            return memoryview((ctypes.c_uint8 * nbytes).from_address(self.address + start)).cast("B")
        parts = []
        while nbytes:
            try:
                part = os.pread(self.fd, nbytes, self.offset + start)
            except OSError as error:
                raise OSError(errno.EFAULT, error.strerror) from None
            if not part:
                raise OSError(errno.EFAULT, "file ends early")
            parts.append(part)
            start, nbytes = start + len(part), nbytes - len(part)
        return b"".join(parts)


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
    inputs: list[Buffer]
    base: Buffer | None
    out_dtype: DType
    sinks: list[Sink]
    labels: list[str]  # names of the models, the base's last
    fp64: bool = False
    solved: Any = None  # the combination, where the method has taken its steps for the whole model
    cache: dict = field(default_factory=dict)  # for the backend: its own form of the operands
    flight: Any = None  # for a device backend: what holds the operands in device memory
    done: Any = None  # called by the engine with the digest when the result is complete

    @property
    def nbytes(self) -> int:
        """Bytes that one pass reads."""
        return sum(b.nbytes for b in self.inputs) + (self.base.nbytes if self.base else 0)


def same_bytes(buffers: list[Buffer]) -> bool:
    """Whether all hold the same bytes; they must be of one size."""
    step = 4 << 20
    for start in range(0, buffers[0].nbytes, step):
        parts = [bytes(b.read(start, min(step, b.nbytes - start))) for b in buffers]
        if any(part != parts[0] for part in parts[1:]):
            return False
    return True


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a request came to: a measurement, or the digest of the written tensor (None for results in memory).

    `nonfinite` counts NaN and infinite elements per input, the base last; empty if there are none.
    """

    value: Any
    nonfinite: tuple[int, ...] = ()


Request = Measure | Combine
Work = tuple[TensorTask, Request]
