"""Torch tensors and numpy arrays as plain memory.

Kernels read and write memory. Much that looks like a tensor has other values than its memory, or no memory: sparse,
nested, masked and quantized tensors, tensors that are distributed, faked or traced, tensors that are negated when
somebody looks. This module is the one place that tells them apart. What it does not know it refuses: the caller can
say what the values are, we can only guess.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from .errors import UsageError

_ARRAYS = (np.ndarray, np.matrix, np.memmap, np.recarray)  # subclasses whose memory is their values
_TO_PLAIN = ("full_tensor", "dequantize", "to_tensor", "wait", "filled")  # how other kinds give their values


def is_tensor(array: Any) -> bool:
    """Whether it is a torch tensor, of whatever kind. Torch is not imported for that."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def plain(array: Any, what: str) -> Any:
    """An equal torch tensor or numpy array whose memory holds its values, behind strides; a copy where need be.

    Args:
        array: the tensor.
        what: the tensor, as messages call it.

    Returns:
        A tensor of torch's own layout, not lazily negated or conjugated, or a numpy array of the machine's byte order.

    Raises:
        UsageError: the values of such a tensor are not in its memory.
    """
    if is_tensor(array):
        check_tensor(array, what)
        return array.resolve_conj().resolve_neg() if array.is_conj() or array.is_neg() else array
    if isinstance(array, np.generic):
        array = np.asarray(array)
    if not isinstance(array, np.ndarray):
        raise UsageError(f"{what} is a {type(array).__name__}; give torch tensors or numpy arrays.")
    if type(array) not in _ARRAYS:
        raise UsageError(f"{what} is {_subclass(type(array), np.ndarray)}.")
    array = np.asarray(array)
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def check_tensor(tensor: Any, what: str) -> None:
    """Raises UsageError if the memory of this torch tensor does not say what its elements are.

    A tensor that is negated or conjugated when somebody looks passes: see `plain`.
    """
    problem = _problem(tensor, sys.modules["torch"])
    if problem:
        raise UsageError(f"{what} {problem}.")


def is_plain(array: Any) -> bool:
    """Whether it is a torch tensor that `check_tensor` lets pass."""
    return is_tensor(array) and not _problem(array, sys.modules["torch"])


def _problem(tensor: Any, torch: Any) -> str:
    kind = type(tensor)
    if kind is not torch.Tensor and kind is not torch.nn.Parameter:  # asked first: others may refuse to be asked
        return f"is {_subclass(kind, torch.Tensor)}"
    if tensor.is_nested:
        return "is nested; give its parts as tensors of their own"
    if tensor.layout is not torch.strided:
        return f"has the layout {str(tensor.layout).removeprefix('torch.')}; call to_dense() on it"
    if tensor.is_quantized:
        return f"is quantized ({str(tensor.dtype).removeprefix('torch.')}); call dequantize() on it"
    if tensor.is_meta:
        return "is on the device meta and holds no data; load the model first"
    try:
        storage = tensor.untyped_storage()
        held, address = storage.nbytes(), storage.data_ptr()
    except RuntimeError:  # torch.func, torch.compile: a name for a value that is computed elsewhere
        return "is being traced or transformed by torch and has no memory; merge outside of that function"
    needed = extent(tensor) + tensor.storage_offset() * tensor.element_size()
    if tensor.numel() and (needed > held or not address):
        return f"needs {needed} bytes, but its storage has {held if address else 0}; gather or load the model first"
    return ""


def extent(tensor: Any) -> int:
    """The bytes from the first element of a torch tensor to the end of the last one."""
    if tensor.is_contiguous():
        return int(tensor.numel() * tensor.element_size())
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return int((last + 1) * tensor.element_size())


def _subclass(kind: type, of: type) -> str:
    found = [name for name in _TO_PLAIN if getattr(kind, name, None) is not getattr(of, name, None)]
    known = f"what its {found[0]}() returns" if found else f"a plain {of.__name__} with its values"
    return f"of the type {kind.__name__}, whose values may not be its memory; give {known}"
