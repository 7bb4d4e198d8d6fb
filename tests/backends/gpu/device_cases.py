"""Requests about tensors on the emulated device, from host memory or in place, against the reference."""

import contextlib
import dataclasses

import numpy as np
import torch
from device_modes import device, emulated
from formula_helpers import assert_same_tensors
from kernel_helpers import buffer, changed, reference, task
from warpmerge.backends.gpu.backend import DeviceBackend
from warpmerge.backends.gpu.kernels import CudaKernels
from warpmerge.backends.gpu.tables import CHUNK
from warpmerge.backends.gpu.torch_runtime import TorchRuntime
from warpmerge.requests import Combine
from warpmerge.tasks import DeviceSink, MemorySink

TILED = 2 * CHUNK + 4097
PLACES = ("resident", "tiled, late")
IN_PLACE = "in place"


class Case:
    """A request about tensors, which is prepared anew for each backend."""

    def __init__(self, request, tensors, base=None, *, outputs=1, out_dtype=None, nonfinite="propagate"):
        self.request, self.tensors, self.base = request, tensors, base
        self.outputs, self.nonfinite = outputs if isinstance(request, Combine) else 0, nonfinite
        self.out_dtype = out_dtype or (base if base is not None else tensors[0]).dtype

    def prepared(self, in_place=False):
        made, _ = task("task_arithmetic", self.tensors, self.base, weight=1.0, nonfinite=self.nonfinite)
        sink = DeviceSink if in_place else MemorySink
        results = [torch.full(self.tensors[0].shape, 123.0, dtype=self.out_dtype) for _ in range(self.outputs)]
        dtype = buffer(torch.empty(0, dtype=self.out_dtype)).dtype
        made = changed(made, out_dtype=dtype, sinks=[sink(r.data_ptr(), r) for r in results])
        if in_place:
            base = None if self.base is None else _on_device(self.base)
            made = changed(made, inputs=[_on_device(t) for t in self.tensors], base=base)
        return made, results


def _on_device(tensor):
    found = buffer(tensor)
    return dataclasses.replace(found, device="cpu")


@contextlib.contextmanager
def place(mode, cases, **options):
    if mode != IN_PLACE:
        with device(mode, [c.prepared()[0] for c in cases], **options) as backend:
            yield backend
        return
    kernels = CudaKernels(emulated, emulated.Device(0))
    yield DeviceBackend("cuda", TorchRuntime("cpu"), kernels, resident=True)


def carry_out(backend, cases, in_place=False):
    made = [case.prepared(in_place) for case in cases]
    outcomes = backend.launch([(t, case.request) for (t, _), case in zip(made, cases, strict=True)]).wait()
    if hasattr(backend, "release"):
        backend.release([t for (t, _), case in zip(made, cases, strict=True) if not case.outputs])
    return outcomes, [results for _, results in made]


def same(got, wanted, what):
    if isinstance(wanted, np.ndarray):
        assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape), what
        assert np.array_equal(got.view(np.int64), wanted.view(np.int64)), what
    else:
        assert got == wanted, what


def compare(cases, modes=PLACES, **options):
    """All cases in one batch of each mode."""
    wanted, written = carry_out(reference(), cases)
    for mode in modes:
        with place(mode, cases, **options) as backend:
            got, results = carry_out(backend, cases, mode == IN_PLACE)
        for number, case in enumerate(cases):
            what = number, type(case.request).__name__, mode
            if not case.outputs:
                same(got[number].value, wanted[number].value, what)
                assert got[number].nonfinite == wanted[number].nonfinite, what
            elif case.nonfinite == "error" or mode != IN_PLACE:
                assert got[number].nonfinite == wanted[number].nonfinite, what
            assert_same_tensors(results[number], written[number], what)
