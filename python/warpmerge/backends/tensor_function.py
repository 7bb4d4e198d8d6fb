"""Requests of type `TensorFunction`: functions of whole tensors, in torch, where the tensors are.

This is the one place where a result may depend on the device and on torch's own algorithms, and where memory is bounded
by the largest tensor instead of a tile.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..errors import DeviceError, MergeError

try:
    import torch
except ImportError:
    raise MergeError("a method that works on whole tensors needs torch: pip install torch.") from None

from ..finite import all_finite
from ..models.views import View
from ..plain import is_plain
from ..requests import TensorFunction, WrittenFunction
from ..tasks import DeviceSink, Outcome, TensorTask
from .reference.output import add_delta, digest, round_to

READ = 1 << 20  # bytes of a file that are held beside the tensor they go to, in a cache if they are so few


def carry_out(
    task: TensorTask, request: TensorFunction, *, device: str | None = None, threads: int | None = None
) -> Outcome:
    """Calls the function; writes what it returns if the request combines.

    device: where to compute what lies in files or host memory, if torch can and has the memory; else it is the CPU.
    Tensors of a device stay there. threads: that torch may use on the CPU. Elements that are not finite are counted as
    everywhere; under `nonfinite: error` the function does not see them, nor is it called. Raises MergeError that names
    method and tensor where the function fails, OSError for a file.
    """
    if device is not None and task.inputs[0].device is None and torch.cuda.is_available():
        with contextlib.suppress(DeviceError):
            return _carried_out(task, request, device)
    with _at_most(threads):
        return _carried_out(task, request, None)


def _carried_out(task: TensorTask, request: TensorFunction, device: str | None) -> Outcome:
    with _at_most(1):  # threads that wait for each other after every megabyte take ten times as long on a busy machine
        x, base, nonfinite = _operands(task, request.on_deltas, device)
    if any(nonfinite) and task.values["nonfinite"] == "error":
        return Outcome.of(None, [*nonfinite, 0])
    like = x[0]
    if isinstance(request, WrittenFunction) and task.info.count == 0:
        return Outcome(_write(task, round_to(like, task.out_dtype)))
    found = _call(task, request, x, base)
    del x
    if not isinstance(request, WrittenFunction):
        return Outcome.of(found, [*nonfinite, 0])
    value = _checked(task, found, like)
    return _finished(task, value if base is None else add_delta(base, value), base, nonfinite)


def _finished(task: TensorTask, value: torch.Tensor, base: torch.Tensor | None, nonfinite: list[int]) -> Outcome:
    """Rounds and writes the result. What is not finite is counted if all operands are finite, as any element of the
    result may be made of any of theirs."""
    result = round_to(value, task.out_dtype)
    too_large = 0
    if not all_finite(result):
        finite = torch.isfinite(result)
        too_large = 0 if any(nonfinite) else int((~finite).sum())
        if base is not None and task.values["nonfinite"] == "base":
            result = torch.where(finite, result, round_to(base, task.out_dtype))
    return Outcome.of(_write(task, result), [*nonfinite, too_large])


def shapes(task: TensorTask) -> list[tuple[int, ...]]:
    """Of each input: the tensor's, those of its auxiliary tensors behind them."""
    info = task.info
    own = (info.count,) if info.shape is None else info.shape
    return [own] * info.models + list(info.auxiliary)


def _operands(
    task: TensorTask, on_deltas: bool, device: str | None
) -> tuple[list[torch.Tensor], torch.Tensor | None, list[int]]:
    """Inputs (deltas if `on_deltas`) and base in their shapes, and how many elements are not finite."""
    compute = torch.float64 if task.fp64 else torch.float32
    try:
        x = [_load(b, compute, device).view(s) for b, s in zip(task.inputs, shapes(task), strict=True)]
        base = _load(task.base, compute, device).view_as(x[0]) if on_deltas and task.base else None
        found = [*x, *([base] if base is not None else [])]
        counts = [_nonfinite(t) for t in found]
        if base is not None:
            for t in x:
                t -= base
        if task.values["nonfinite"] == "base":
            x = [d if all_finite(d) else torch.where(torch.isfinite(d), d, torch.zeros_like(d)) for d in x]
    except (MemoryError, RuntimeError) as error:
        raise _too_little(task) if _lacks_memory(error) else error from None
    counts += [0] * (len(x) + 1 - len(counts))
    return x, base, counts


def _nonfinite(t: torch.Tensor) -> int:
    return 0 if all_finite(t) else int((~torch.isfinite(t)).sum())


def _load(view: View, compute: torch.dtype, device: str | None) -> torch.Tensor:
    """A copy of the elements, flat, in the compute type."""
    dtype = getattr(torch, view.dtype.name)
    if view.device is not None:
        return view.tensor().reshape(-1).to(compute, copy=True)
    flat = torch.empty(view.count, dtype=compute if device is None else dtype)
    staged = torch.empty(READ, dtype=torch.uint8)
    at = 0
    for data in view.chunks(READ):
        part = np.frombuffer(data, np.uint8)
        staged.numpy()[: part.size] = part
        values = staged[: part.size].view(dtype)
        flat[at : at + len(values)].copy_(values)
        at += len(values)
    return flat.to(device or "cpu").to(compute)


def _call(task: TensorTask, request: TensorFunction, x: list[torch.Tensor], base: torch.Tensor | None) -> Any:
    try:
        return request.function(x, base)
    except (MergeError, OSError):
        raise
    except Exception as error:
        if _lacks_memory(error):
            raise _too_little(task) from None
        reason = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".: ")
        raise MergeError(f"method '{_name(task)}' failed on {task.info}: {reason}.") from error


def _checked(task: TensorTask, found: Any, like: torch.Tensor) -> torch.Tensor:
    wanted = f"a floating-point tensor of the shape {list(like.shape)}"
    if not isinstance(found, torch.Tensor):
        problem = f"a {type(found).__name__}"
    elif not is_plain(found):
        problem = f"a {type(found).__name__} whose values are not in its memory"
    elif not found.is_floating_point():
        problem = f"a tensor of {str(found.dtype).removeprefix('torch.')}"
    elif found.shape != like.shape:
        problem = f"one of the shape {list(found.shape)}"
    else:
        return found.detach().resolve_neg().to(like.device, like.dtype)
    raise MergeError(
        f"the function of method '{_name(task)}' for {task.info} must return {wanted}, but returned {problem}; that is "
        "an error in the method."
    )


def _write(task: TensorTask, result: torch.Tensor) -> int | None:
    sink = task.sinks[0]
    if isinstance(sink, DeviceSink):
        sink.owner.reshape(-1).copy_(result.reshape(-1))
        return None
    flat = result.cpu().contiguous().reshape(-1)
    data: Any = flat.view(torch.uint8).numpy() if math.prod(flat.shape) else np.empty(0, np.uint8)
    sink.write(memoryview(data).cast("B"))
    return digest(data)


@contextlib.contextmanager
def _at_most(threads: int | None) -> Iterator[None]:
    """Bounds torch's threads, which are the process's, for as long as it lasts."""
    before = torch.get_num_threads()
    if threads is None or threads >= before:
        yield
        return
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _name(task: TensorTask) -> str:
    return task.method.name if task.method is not None else "?"


def _lacks_memory(error: Exception) -> bool:
    return isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or "can't allocate memory" in str(error)


def _too_little(task: TensorTask) -> DeviceError:
    return DeviceError(
        f"method '{_name(task)}' works on whole tensors, and there is too little memory for {task.info} "
        f"({list(task.info.shape or (task.info.count,))}, {len(task.group.inputs)} inputs); merge on the CPU, or "
        "merge fewer models at a time."
    )
