"""The runtime over torch: its allocators and streams, on a GPU or, where Triton interprets kernels, on the CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch


class TorchMemory:
    """(nbytes,) uint8. Torch aligns device memory to 512 bytes and host memory to 64."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self.address, self.nbytes = tensor.data_ptr(), tensor.numel()


class TorchRuntime:
    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.on_gpu = self.device.type == "cuda"
        if self.on_gpu and self.device.index is None:
            self.device = torch.device("cuda", torch.cuda.current_device())
        self.name = str(self.device)

    def memory(self) -> tuple[int, int]:
        if self.on_gpu:
            return torch.cuda.mem_get_info(self.device)
        import os

        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES"), total

    def alloc(self, nbytes: int, streams: Sequence[TorchStream] = ()) -> TorchMemory:
        memory = TorchMemory(self._empty(nbytes, device=self.device))
        # Torch gives memory to its current stream, where what was there before may still be read.
        here = self.current_stream()
        for stream in streams:
            stream.wait(here.record())
        return memory

    def pinned(self, nbytes: int) -> TorchMemory:
        return TorchMemory(self._empty(nbytes, pin_memory=self.on_gpu))

    def _empty(self, nbytes: int, **where: Any) -> torch.Tensor:
        try:
            return torch.empty(nbytes, dtype=torch.uint8, **where)
        except RuntimeError as error:
            if isinstance(error, torch.cuda.OutOfMemoryError) or "allocate memory" in str(error):
                raise MemoryError(f"{self.name}: {str(error).splitlines()[0]}") from None
            raise  # an error of the device, which no memory would mend

    def new_stream(self) -> TorchStream:
        return TorchStream(torch.cuda.Stream(self.device) if self.on_gpu else None, self.device)

    def current_stream(self) -> TorchStream:
        return TorchStream(torch.cuda.current_stream(self.device) if self.on_gpu else None, self.device)


class TorchStream:
    """`stream` None: the CPU, where everything has happened when a call returns."""

    def __init__(self, stream: Any, device: torch.device) -> None:
        self._stream, self._device = stream, device
        self.handle = stream.cuda_stream if stream is not None else 0

    def context(self) -> contextlib.AbstractContextManager:
        """Makes this stream and its device torch's current ones."""
        return contextlib.nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def copy_in(self, target: TorchMemory, at: int, source: TorchMemory, start: int, nbytes: int) -> None:
        with self.context():
            target.tensor[at : at + nbytes].copy_(source.tensor[start : start + nbytes], non_blocking=True)

    copy_out = copy_in

    def zero(self, target: TorchMemory, at: int, nbytes: int) -> None:
        with self.context():
            target.tensor[at : at + nbytes].zero_()

    def record(self) -> TorchEvent:
        return TorchEvent(None if self._stream is None else self._stream.record_event())

    def wait(self, event: TorchEvent) -> None:
        if self._stream is not None:
            self._stream.wait_event(event.event)


class TorchEvent:
    def __init__(self, event: Any) -> None:
        self.event = event

    def done(self) -> bool:
        return self.event is None or self.event.query()

    def synchronize(self) -> None:
        if self.event is not None:
            self.event.synchronize()
