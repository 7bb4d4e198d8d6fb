"""Operands on the device, a launch table over them, and the same work on the CPU to compare with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from warpmerge.backends.cpu.backend import CpuBackend
from warpmerge.backends.gpu.kernels import CudaKernels, TritonKernels
from warpmerge.backends.gpu.tables import Kind, SegmentRow, Table, is_aligned, rule_rows
from warpmerge.backends.gpu.torch_runtime import TorchRuntime
from warpmerge.requests import Mask
from warpmerge.tasks import Outcome

from ..operands import DTYPES, carry_out, dtype_of, make_task, random_model, same_bits
from .harness import Bench

POISON = 123.0  # no merge gives it


@dataclass
class Work:
    """A kernel's launch, ready to be queued, and what tells whether it does the right thing."""

    kernel: str
    what: str
    nbytes: int
    queue: Callable[[], None]
    check: Callable[[], None]


class Operands:
    """Random models by dtype and number, made once, the base being number 0."""

    def __init__(self, device: torch.device, nbytes: int) -> None:
        """`nbytes`: of the longest one."""
        self.device, self._nbytes = device, nbytes
        self._made: dict[tuple[str, int], torch.Tensor] = {}

    def tensor(self, dtype: str, index: int, count: int) -> torch.Tensor:
        if (dtype, index) not in self._made:
            length = self._nbytes // DTYPES[dtype].itemsize
            self._made[dtype, index] = random_model(length, index, DTYPES[dtype], self.device)
        return self._made[dtype, index][:count]

    def keep_only(self, dtype: str) -> None:
        """Frees the models of other dtypes."""
        self._made = {key: tensor for key, tensor in self._made.items() if key[0] == dtype}


def kernels_of(backend: str, device: torch.device) -> Any:
    if backend == "triton":
        return TritonKernels()
    from warpmerge.backends.gpu import cuda

    native = cuda.native()
    return CudaKernels(native, native.Device(device.index or 0))


class Problem:
    """One launch over the first `count` elements of some models, with the memory that it needs."""

    def __init__(
        self,
        backend: str,
        operands: Operands,
        dtype: str,
        models: int,
        count: int,
        *,
        base: bool,
        output: bool = False,
        numbers: Callable[[int], Sequence[float]] | None = None,
        keep: Sequence[Mask] | None = None,
        words: Sequence[int] | None = None,
        programs: int | None = None,
    ) -> None:
        """`numbers`: gives the coefficients for so many models. `programs`: in the place of chunks."""
        self.device, self.models, self.count = operands.device, models, count
        self.kernels = kernels_of(backend, self.device)
        self.stream = TorchRuntime(self.device).current_stream()
        self.inputs = [operands.tensor(dtype, k + 1, count) for k in range(models)]
        self.base = operands.tensor(dtype, 0, count) if base else None
        self.output = torch.empty(count, dtype=DTYPES[dtype], device=self.device) if output else None
        self.nonfinite = torch.zeros(models + 1, dtype=torch.int64, device=self.device)
        self._lay_out(numbers, keep, words, programs)

    def _lay_out(
        self,
        numbers: Callable[[int], Sequence[float]] | None,
        keep: Sequence[Mask] | None,
        words: Sequence[int] | None,
        programs: int | None,
    ) -> None:
        code = dtype_of(self.inputs[0]).code
        address = {id(t): t.data_ptr() for t in (*self.inputs, self.base, self.output) if t is not None}
        kind = Kind(
            inputs=(code,) * self.models,
            base=-1 if self.base is None else code,
            out=code,
            outputs=int(self.output is not None),
            fp64=False,
            policy=0,
            aligned=is_aligned(*address.values()),
        )
        inputs = tuple(t.data_ptr() for t in self.inputs)
        outputs = () if self.output is None else (self.output.data_ptr(),)
        segment = SegmentRow(self.count, 0, 0, 0, self.count, address.get(id(self.base), 0), inputs, outputs)
        table = Table(
            kind,
            [segment],
            None if numbers is None else np.array([numbers(self.models)], np.float64),
            None if keep is None else np.array([rule_rows(keep)], np.int64),
            None if words is None else np.array([words], np.int64),
            None if programs is None else [programs],
        )
        packed = np.zeros(table.nbytes, np.uint8)
        self._table = torch.empty(table.nbytes, dtype=torch.uint8, device=self.device)
        self.launch = table.write(packed, self._table.data_ptr())
        self._table.copy_(torch.from_numpy(packed))

    @property
    def nbytes(self) -> int:
        """Each operand read once, the output written once."""
        arrays = self.models + (self.base is not None) + (self.output is not None)
        return arrays * self.count * self.inputs[0].element_size()


def on_cpu(backend: Any, p: Problem, request: Any, count: int) -> tuple[Outcome, torch.Tensor]:
    """The request on the first `count` elements by a backend that computes on the CPU, and what it wrote."""
    inputs = [t[:count].cpu() for t in p.inputs]
    base = None if p.base is None else p.base[:count].cpu()
    result = torch.empty_like(inputs[0])
    return carry_out(backend, make_task(inputs, base, result), request), result


def checked_combine(bench: Bench, p: Problem, request: Any, queue: Callable[[], None]) -> Callable[[], None]:
    """Every element of the output is written, and the first ones have the CPU's bits."""

    def check() -> None:
        p.output.fill_(POISON)
        queue()
        assert not bool((p.output == POISON).any()), "elements were left unwritten"
        count = min(p.count, bench.sizes.checked)
        wanted = on_cpu(CpuBackend(), p, request, count)[1]
        got = p.output[:count].cpu()
        assert same_bits(got, wanted), "differs from the CPU's result"

    return check
