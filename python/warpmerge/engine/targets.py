"""Merging into tensors that are there: the parameters of a module, the tensors of a state dict.

A target is memory that the merge writes. So everything is checked before the first byte: a target must be plain memory
of its own, and writing it must mean what the caller expects.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any, cast

from ..dtypes import DType
from ..errors import CheckpointError, OutputError, UsageError
from ..plain import check_tensor, extent, is_plain, is_tensor
from .arrays import Array, FileArray, Place, dtype_of
from .memory_merge import Operands
from .results import Result
from .state_dicts import tensors_of


def results_in(into: Any, operands: Operands, place: Place) -> dict[str, Result]:
    """The tensors of a module or state dict as results. Names that are one tensor there share a result.

    Raises:
        UsageError: `into` is neither, or the memory of a target is not its values.
        CheckpointError: a target does not fit its tensor, or overlaps with another one.
    """
    found = _tensors(into)
    own = _memory_of(into) if _is_module(into) else None
    targets = {}
    for name, array in operands.source.arrays.items():
        if name not in found:
            raise CheckpointError(f"the target has no tensor '{name}'.")
        targets[name] = _target(name, found[name], array, place, own)
        if operands.memory.overlap(targets[name].data_ptr(), extent(targets[name])):
            raise CheckpointError(f"tensor '{name}' of the target shares memory with the pool's own tensors.")
    first = _first_of_each(targets, operands)
    filled = {target.data_ptr() for target in targets.values()}
    for name, tensor in found.items():
        if name not in targets and _is_left_out(tensor, filled):
            raise CheckpointError(f"the target has the tensor '{name}', but the models lack it.")
    _check_writable(targets)
    _announce_writing(targets.values())
    results = {name: _result(targets[name], place) for name in first.values()}
    return {name: results[first[name]] for name in targets}


def _result(target: Any, place: Place) -> Result:
    return Result(target, cast(DType, dtype_of(target.dtype)), None, place.in_place)


def _is_module(into: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(into, torch.nn.Module)


def _tensors(into: Any) -> dict[str, Any]:
    return tensors_of(into.state_dict(keep_vars=True) if _is_module(into) else into, "the target")


def _memory_of(module: Any) -> set[int]:
    """Addresses of the memory of its parameters and buffers."""
    tensors = itertools.chain(module.parameters(), module.buffers())
    return {tensor.untyped_storage().data_ptr() for tensor in tensors if is_plain(tensor)}


def _target(name: str, tensor: Any, array: Array | FileArray, place: Place, own: set[int] | None) -> Any:
    """The tensor, if the merge may write the array's result into it. `own`: the memory of the module."""
    what = f"tensor '{name}' of the target"
    if not is_tensor(tensor):
        raise UsageError(f"{what} is a {type(tensor).__name__}; give torch tensors to merge into.")
    check_tensor(tensor, what)
    problem = _misfit(tensor, array, place) or _not_writable(tensor)
    if problem:
        raise CheckpointError(f"{what} {problem}.")
    if own is not None and tensor.numel() and tensor.untyped_storage().data_ptr() not in own:
        raise UsageError(
            f"{what} is a copy that its state_dict() makes, so what is merged would be lost; give a mapping from names "
            "to its own tensors instead."
        )
    return tensor.detach()


def _misfit(tensor: Any, array: Array | FileArray, place: Place) -> str:
    if tuple(tensor.shape) != array.shape:
        return f"has the shape {list(tensor.shape)}, not {list(array.shape)}"
    if str(tensor.device) != place.device:
        return f"is on {tensor.device}, not on {place.device}"
    dtype = dtype_of(tensor.dtype)
    if dtype != array.dtype and not (dtype and dtype.is_float and array.dtype.is_float):
        return f"is {tensor.dtype}, which cannot hold {array.dtype}"
    return ""


def _not_writable(tensor: Any) -> str:
    import torch

    if not tensor.is_contiguous():
        return "is not contiguous"
    if tensor.is_neg() or tensor.is_conj():
        return "is a lazy negative or conjugate of another tensor; merge into resolve_neg() or resolve_conj() of it"
    if tensor.requires_grad and not tensor.is_leaf:
        return "is computed from other tensors, and its gradient would be wrong; merge into its detach()"
    if tensor.is_inference() and not torch.is_inference_mode_enabled():
        return "was made in inference mode; merge in torch.inference_mode(), or into its clone()"
    return ""


def _first_of_each(targets: Mapping[str, Any], operands: Operands) -> dict[str, str]:
    """Of each name the first one with the same target. Raises CheckpointError if others overlap with it."""
    first = {}
    order = sorted((name for name in targets if targets[name].numel()), key=lambda name: targets[name].data_ptr())
    last, end = "", 0
    for name in order:
        target = targets[name]
        if target.data_ptr() >= end:
            last, end = name, target.data_ptr() + extent(target)
        elif _place_of(target) != _place_of(targets[last]):
            raise CheckpointError(f"'{last}' and '{name}' overlap in the target; give each tensor memory of its own.")
        elif operands.identity(name) != operands.identity(last):
            raise CheckpointError(
                f"'{last}' and '{name}' are one tensor in the target, but differ in the models; untie them in the "
                "target."
            )
        first[name] = last
    return {name: first.get(name, name) for name in targets}


def _place_of(tensor: Any) -> tuple:
    return tensor.data_ptr(), tensor.shape, tensor.dtype


def _is_left_out(tensor: Any, filled: set[int]) -> bool:
    """Whether it is a tensor with elements, and none that is filled under another name."""
    if not is_plain(tensor):
        return is_tensor(tensor)
    return bool(tensor.numel()) and tensor.data_ptr() not in filled


def _check_writable(targets: Mapping[str, Any]) -> None:
    """Raises CheckpointError for memory that is mapped read-only, as of a file: to write there ends the process.

    The system is asked to read the first byte and to put it back. It says no where a write would be a fault.
    """
    try:
        reader, writer = os.pipe()
    except OSError as error:
        raise OutputError(f"the memory of the target cannot be checked: {error.strerror}.") from None
    try:
        for name, target in targets.items():
            if target.numel() and target.device.type == "cpu":
                byte = (ctypes.c_uint8 * 1).from_address(target.data_ptr())
                try:
                    os.write(writer, byte)
                    os.readv(reader, [byte])
                except OSError:
                    raise CheckpointError(
                        f"tensor '{name}' of the target is memory that is mapped read-only; merge into its clone()."
                    ) from None
    finally:
        os.close(reader)
        os.close(writer)


def _announce_writing(targets: Iterable[Any]) -> None:
    """Lets autograd refuse a backward pass that needs what was there before, as after any change in place."""
    import torch

    for target in targets:
        if not target.is_inference():
            torch.autograd.graph.increment_version(target)
