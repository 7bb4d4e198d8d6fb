"""Merging into tensors that are there: the parameters of a module, the tensors of a state dict."""

from __future__ import annotations

from typing import Any

from ..dtypes import BY_NAME
from ..errors import CheckpointError
from .arrays import Place, Result
from .memory_merge import Operands


def results_in(into: Any, operands: Operands, place: Place) -> dict[str, Result]:
    """The tensors of a module or state dict as results. If two of them share memory, the models must share it too."""
    found = into.state_dict(keep_vars=True) if hasattr(into, "state_dict") else into
    results: dict[str, Result] = {}
    filled: dict[int, tuple[str, tuple]] = {}
    for name, array in operands.source.arrays.items():
        if name not in found:
            raise CheckpointError(f"the target has no tensor '{name}'.")
        target = found[name].detach()
        problem = (
            f"has the shape {list(target.shape)}, not {list(array.shape)}"
            if tuple(target.shape) != array.shape
            else f"is on {target.device}, not on {place.device}"
            if str(target.device) != place.device
            else "shares memory with the pool's own tensors"
            if operands.memory.overlap(target.data_ptr(), target.numel() * target.element_size())
            else "is not contiguous"
            if not target.is_contiguous()
            else f"is {target.dtype}, which cannot hold {array.dtype}"
            if (str(target.dtype) != f"torch.{array.dtype}")
            and not (target.is_floating_point() and array.dtype.is_float)
            else ""
        )
        if problem:
            raise CheckpointError(f"tensor '{name}' of the target {problem}.")
        identity = operands.identity(name)
        other, known = filled.setdefault(target.data_ptr(), (name, identity)) if target.numel() else (name, identity)
        if known != identity:
            raise CheckpointError(
                f"'{other}' and '{name}' are one tensor in the target, but differ in the models; untie them in the "
                "target."
            )
        results[name] = (
            results[other]
            if other != name
            else Result(target, BY_NAME[str(target.dtype).removeprefix("torch.")], None, place.in_place)
        )
    filled_there = set(filled)
    for name, tensor in found.items():
        if name not in operands.source.arrays and tensor.numel() and tensor.data_ptr() not in filled_there:
            raise CheckpointError(f"the target has the tensor '{name}', but the models lack it.")
    return results
