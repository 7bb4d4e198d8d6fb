"""The Triton kernels: for GPUs where no CUDA compiler was at hand. Memory and streams are torch's.

With TRITON_INTERPRET=1 they run on the CPU, slowly: for tests.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import UsageError
from ...units import show_size

if TYPE_CHECKING:
    from .backend import DeviceBackend
    from .multi_device import MultiDeviceBackend


def interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def reason() -> str | None:
    for package in ("torch", "triton"):
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed"
    if interpreted():
        return None
    if not _has_driver():  # without importing torch, which takes a second
        return "no GPU driver is installed"
    import torch

    return None if torch.cuda.is_available() else "torch sees no GPU (torch.cuda.is_available() is false)"


def _has_driver() -> bool:
    return any(Path(p).exists() for p in ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd"))


def devices() -> list[str]:
    """A line for each GPU: its name in `--device`, its model, compute capability and memory."""
    if interpreted():
        return ["cpu     Triton's interpreter (TRITON_INTERPRET=1), for tests"]
    import torch

    found = []
    for i in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(i)
        capability = ".".join(map(str, torch.cuda.get_device_capability(i)))
        found.append(
            f"cuda:{i}  {torch.cuda.get_device_name(i)}, compute capability {capability}, {show_size(total)} "
            f"({show_size(free)} free)"
        )
    return found


def create(
    device: str = "cuda", threads: int | None = None, budget: int | None = None, **options: Any
) -> DeviceBackend | MultiDeviceBackend:
    """`budget`: bytes of memory to use on each device. Raises UsageError for a device that there is not."""
    import torch

    from .backend import DeviceBackend
    from .kernels import TritonKernels
    from .multi_device import MultiDeviceBackend, parse_devices
    from .torch_runtime import TorchRuntime

    try:
        count = 1 if interpreted() else torch.cuda.device_count()
        indices = parse_devices(device, count)
    except ValueError as error:
        raise UsageError(f"{error}.") from None
    targets = ["cpu"] if interpreted() else [f"cuda:{index}" for index in indices]
    members = [
        DeviceBackend("triton", TorchRuntime(target), TritonKernels(), threads=threads, budget=budget, **options)
        for target in targets
    ]
    return members[0] if len(members) == 1 else MultiDeviceBackend(members)


def create_in_place(device: Any) -> DeviceBackend:
    """For tensors of the torch device `device`."""
    from .backend import DeviceBackend
    from .kernels import TritonKernels
    from .torch_runtime import TorchRuntime

    return DeviceBackend("triton", TorchRuntime(device), TritonKernels(), resident=True)
