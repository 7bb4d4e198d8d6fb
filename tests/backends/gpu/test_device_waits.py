"""How often a merge of a device's own tensors waits for the device: as often as its method has to look at a result."""

import pytest
from kernel_helpers import family, task
from warpmerge.backends.gpu import torch_runtime
from warpmerge.backends.gpu.backend import DeviceBackend
from warpmerge.engine import loop as engine
from warpmerge.tasks import DeviceSink


class Kernels:
    """Stand-ins that only note their names; measurements come out as zeros, selections as found."""

    samples = False

    def __init__(self, missing=()):
        self.launched, self._missing = [], missing

    @staticmethod
    def select_sweeps(fp64, sampled):
        return 3

    def __getattr__(self, name):
        if name in self._missing:
            raise AttributeError(name)
        return lambda *arguments: self.launched.append(name)


def run(monkeypatch, method, count=300, missing=(), **parameters):
    """Waits and kernels of a merge of `count` tensors."""
    waits = []
    monkeypatch.setattr(torch_runtime.TorchEvent, "synchronize", lambda event: waits.append(event))
    base, models = family("bf16", 3, 1031)
    kernels = Kernels(missing)
    backend = DeviceBackend("fake", torch_runtime.TorchRuntime("cpu"), kernels, resident=True)
    tasks = []
    for number in range(count):
        made, result = task(method, models, base, name=f"{number}", weight=0.3, **parameters)
        made.sinks = [DeviceSink(result.data_ptr(), result)]
        tasks.append(made)
    engine.run(tasks, backend)
    return len(waits), kernels.launched


@pytest.mark.parametrize("options", [{}, {"lambda_": 0.5}])
def test_a_pass_without_a_look_does_not_wait(monkeypatch, options):
    assert run(monkeypatch, "task_arithmetic", nonfinite="propagate", **options) == (0, ["weighted_sum"])


def test_kernels_without_an_accelerator_evaluate_formulas(monkeypatch):
    options = {"nonfinite": "propagate", "density": 0.5}
    assert run(monkeypatch, "task_arithmetic", missing=["weighted_sum"], nonfinite="propagate") == (0, ["formula"])
    without = ["kept_sums", "elect_and_sum"]
    launched = ["formula", "tensor_sums", "reduce_blocks", "formula"]
    assert run(monkeypatch, "dare_linear", missing=without, **options) == (1, launched)


def test_counting_what_is_not_finite_is_one_wait(monkeypatch):
    assert run(monkeypatch, "task_arithmetic") == (1, ["weighted_sum"])


def test_dropping_without_measuring_does_not_wait(monkeypatch):
    options = {"density": 0.5, "rescale": "inverse_density", "nonfinite": "propagate"}
    assert run(monkeypatch, "dare_ties", **options) == (0, ["elect_and_sum"])


def test_each_measurement_is_one_wait(monkeypatch):
    waits, launched = run(monkeypatch, "dare_linear", density=0.5, nonfinite="propagate")
    assert (waits, launched) == (1, ["kept_sums", "reduce_blocks", "elect_and_sum"])
    assert run(monkeypatch, "dare_linear", density=0.5)[0] == 2


def test_all_tensors_share_launches(monkeypatch):
    assert run(monkeypatch, "linear", count=1)[1] == run(monkeypatch, "linear", count=2000)[1]
