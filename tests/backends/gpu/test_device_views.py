"""Views on the emulated device: produced into page-locked buffers, or materialised in the device's memory."""

import random

import pytest
import torch
from device_cases import TILED
from device_modes import BOTH, FIXTURES, device, emulated
from kernel_helpers import assert_same_bits, changed, cpu, run
from view_helpers import Views, shape_of
from warpmerge.backends.gpu.backend import DeviceBackend
from warpmerge.backends.gpu.kernels import CudaKernels
from warpmerge.backends.gpu.torch_runtime import TorchRuntime
from warpmerge.tasks import DeviceSink

(emulation,) = FIXTURES
METHODS = {
    "ties": {"weight": [0.5, 0.3], "density": [0.5, 0.7]},
    "linear": {"weight": [0.5, 0.3]},
}


def tasks(views, counts=(0, 1, 700, TILED)):
    made = [
        views.task(method, shape_of(count, random.Random(count)), 2, **parameters)
        for count in counts
        for method, parameters in METHODS.items()
    ]
    copied = views.task("linear", (30, 41), 2, weight=[1.0, 1.0])
    copy = [(changed(one, method=None, inputs=one.inputs[1:]), result) for one, result in copied]
    return [*made, copy]


@pytest.mark.parametrize("mode", BOTH)
@pytest.mark.parametrize("seed", [1, 2])
def test_staged(mode, seed):
    with Views(seed) as views:
        composed, plain = zip(*tasks(views), strict=True)
        wanted = run(cpu(), *plain)
        with device(mode, [t for t, _ in composed]) as backend:
            for got, same in zip(run(backend, *composed), wanted, strict=True):
                assert_same_bits(got, same, mode)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_in_place(dtype):
    with Views(3, dtype, in_place=True) as views:
        composed, plain = zip(*tasks(views, (1, 700, 5000)), strict=True)
        wanted = run(cpu(), *plain)
        for made, result in composed:
            made.sinks = [DeviceSink(result.data_ptr(), result)]
        backend = DeviceBackend("cuda", TorchRuntime("cpu"), CudaKernels(emulated, emulated.Device(0)), resident=True)
        for got, same in zip(run(backend, *composed), wanted, strict=True):
            assert_same_bits(got, same)
