"""Every method by the CUDA kernels on the emulated device: the CPU's bits, alone and with others in one residency."""

import pytest
from device_modes import FIXTURES, compare
from kernel_helpers import family, weights
from warpmerge.backends.gpu.tables import CHUNK
from warpmerge.methods import REGISTRY

(emulation,) = FIXTURES

NEEDED = {
    "ema": {"decay": 0.3},
    "expo": {"alpha": 0.4},
    "nearswap": {"t": 1e-3},
    "slerp": {"t": 0.3},
    "trimmed_mean": {"beta": 0.3},
}
AUXILIARY = {"fisher", "regmean"}  # take more than models and a base
WEIGHED = {
    "breadcrumbs",
    "breadcrumbs_ties",
    "dare_linear",
    "dare_ties",
    "della",
    "della_linear",
    "linear",
    "multislerp",
    "nuslerp",
    "task_arithmetic",
    "ties",
}
METHODS = sorted(REGISTRY.keys() - AUXILIARY)  # what other tests register is not there yet
DENSE = {"iso_c", "iso_cts", "knots", "tsv", "wudi"}  # for whole tensors, in torch


def arguments(name, models, dtype, shape):
    method = REGISTRY[name]
    base, tensors = family(dtype, models, shape)
    parameters = dict(NEEDED.get(name, {}))
    if name in WEIGHED:
        parameters["weight"] = weights(models)
    return (name, tensors, base if method.base.is_reference else None), parameters


def models_of(name):
    return {"slerp": 2, "nuslerp": 2, "nearswap": 1, "arcee_fusion": 1, "expo": 1, "passthrough": 1, "krum": 5}.get(
        name, 3
    )


@pytest.mark.parametrize("dtype", ["bf16", "mixed64"])
def test_all_methods_share_a_residency(dtype):
    cases = []
    for name in METHODS:
        for shape in [(33, 70), (5,), (3, 1030), ()]:
            cases.append(((name, shape), arguments(name, models_of(name), dtype, shape)))
    compare(cases)


def test_methods_in_tiles():
    """Rows that are divided nowhere, and tensors that are."""
    shape = (5, CHUNK // 4)
    cases = [(name, arguments(name, models_of(name), "bf16", shape)) for name in METHODS if name not in DENSE]
    compare(cases, ["tiled"])
