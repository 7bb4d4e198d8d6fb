"""Tensors to merge into."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..dtypes import DType
from ..errors import DeviceError, UsageError
from ..plain import check_tensor
from ..tasks import DeviceSink, MemorySink, Sink


class Result:
    """A tensor to merge into. `device`: where it is to be in the end, None if it is there."""

    def __init__(self, array: Any, dtype: DType, device: Any, in_place: bool) -> None:
        self.array, self.dtype, self._device, self._in_place = array, dtype, device, in_place

    def sink(self) -> Sink:
        if self._in_place:
            return DeviceSink(self.array.data_ptr(), self.array)
        address = self.array.ctypes.data if isinstance(self.array, np.ndarray) else self.array.data_ptr()
        return MemorySink(address, self.array)

    def finish(self) -> Any:
        """The tensor where it is to be; the same one for all names that share it."""
        if self._device is not None:
            self.array, self._device = self.array.to(self._device), None
        return self.array


def new_tensor(shape: tuple[int, ...], dtype: DType, device: Any, wanted: Any = None, in_place: bool = False) -> Result:
    """A torch tensor to merge into. `wanted`: the device where it is to be in the end."""
    import torch

    try:
        made = torch.empty(shape, dtype=getattr(torch, dtype.name), device=device)
    except RuntimeError as error:  # of which torch.OutOfMemoryError is one
        raise DeviceError(f"no memory for the result: {first_line(error)}.") from None
    check_tensor(made, "the result")  # torch may be tracing what is made
    return Result(made, dtype, wanted, in_place)


def new_array(shape: tuple[int, ...], dtype: DType, element: Any = None) -> Result:
    """A numpy array to merge into. `element`: numpy's type for the dtype, if it is known."""
    try:
        return Result(np.empty(shape, element or numpy_dtype(dtype)), dtype, None, False)
    except MemoryError as error:
        raise DeviceError(f"no memory for the result: {first_line(error)}.") from None


def first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".")


def numpy_dtype(dtype: DType) -> Any:
    try:
        return np.dtype(dtype.name)
    except TypeError:
        raise UsageError(f"numpy has no {dtype}; import ml_dtypes, or choose another out_dtype.") from None
