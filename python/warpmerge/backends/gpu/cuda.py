"""The compiled CUDA kernels. Files and host memory go through the native runtime, torch's tensors stay in place."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ...errors import UsageError
from ...units import show_size

# What it needs for a device is imported when one is used: whether there is one is asked for by every merge.
if TYPE_CHECKING:
    from .backend import DeviceBackend
    from .multi_device import MultiDeviceBackend


def native() -> Any:
    """The native module `_cuda`; with WARPMERGE_CUDA_EMULATION=1 the one whose kernels run on the CPU, for tests."""
    if os.environ.get("WARPMERGE_CUDA_EMULATION") == "1":
        from ... import _cuda_emulated

        return _cuda_emulated
    from ... import _cuda

    return _cuda


def reason() -> str | None:
    try:
        return native().why_not()
    except ImportError:
        return "this installation was built without a CUDA compiler; reinstall where nvcc is on the PATH"


def devices() -> list[str]:
    """A line for each GPU: its name in `--device`, its model, compute capability and memory."""
    module = native()
    found = [module.Device(i) for i in range(module.device_count())]
    return [
        f"cuda:{d.index}  {d.name}, compute capability {d.capability[0]}.{d.capability[1]}, "
        f"{show_size(d.memory()[1])} ({show_size(d.memory()[0])} free)"
        for d in found
    ]


def create(
    device: str = "cuda", threads: int | None = None, budget: int | None = None, **options: Any
) -> DeviceBackend | MultiDeviceBackend:
    """`budget`: bytes of memory to use on each device. Raises UsageError for a device that there is not."""
    from .backend import DeviceBackend
    from .kernels import CudaKernels
    from .multi_device import MultiDeviceBackend, parse_devices
    from .runtime import NativeRuntime

    module = native()
    try:
        indices = parse_devices(device, module.device_count())
    except ValueError as error:
        raise UsageError(f"{error}.") from None
    members = []
    for index in indices:
        gpu = module.Device(index)
        kernels = CudaKernels(module, gpu)
        members.append(DeviceBackend("cuda", NativeRuntime(gpu), kernels, threads=threads, budget=budget, **options))
    return members[0] if len(members) == 1 else MultiDeviceBackend(members)


def create_in_place(device: Any) -> DeviceBackend:
    """For tensors of the torch device `device`."""
    from .backend import DeviceBackend
    from .kernels import CudaKernels
    from .torch_runtime import TorchRuntime

    module, runtime = native(), TorchRuntime(device)
    return DeviceBackend("cuda", runtime, CudaKernels(module, module.Device(runtime.device.index)), resident=True)
