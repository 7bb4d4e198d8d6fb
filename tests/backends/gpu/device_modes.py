"""Backends on the emulated device: whole batches in its memory or tiles, work at once or as late as it may be."""

import contextlib
import gc

import pytest
from device_budget import budget_for
from kernel_helpers import assert_same_bits, cpu, run, task
from warpmerge.backends.gpu.tables import CHUNK

emulated = pytest.importorskip("warpmerge._cuda_emulated", reason="built without -DWARPMERGE_CUDA_EMULATION=ON")

TILED = 3 * CHUNK + 4097  # elements: several tiles of a chunk each, the last one with a block and a rest
SAMPLED = 4 * CHUNK + 999  # `select` begins with a sample


@pytest.fixture(autouse=True)
def emulation(monkeypatch):
    monkeypatch.setenv("WARPMERGE_CUDA_EMULATION", "1")
    emulated.reset()
    yield
    emulated.reset()
    gc.collect()


# Resident: all of a batch lies in device memory. Tiled: one chunk at a time, through buffers that hold less than one.
MODES = {
    "resident": {},
    "resident, late": {"late": True, "buffer_bytes": 1 << 16},
    "tiled": {"chunks": 1, "buffer_bytes": 4096},
    "tiled, late": {"chunks": 2, "buffer_bytes": 1 << 16, "late": True},
    "small batches": {"batch_bytes": 20_000, "buffer_bytes": 1 << 15},
}
BOTH = ("resident", "tiled, late")


@contextlib.contextmanager
def device(mode, tasks):
    from warpmerge.backends.gpu import cuda

    options = {"buffer_bytes": 1 << 20, "threads": 2, **MODES[mode]}
    emulated.defer(options.pop("late", False))
    emulated.reverse_order(mode == "tiled")
    chunks = options.pop("chunks", 0)
    backend = cuda.create(budget=budget_for(tasks, chunks) if chunks else None, **options)
    try:
        yield backend
    finally:
        backend.close()
        emulated.defer(False)


def on_device(mode, *made):
    with device(mode, [t for t, _ in made]) as backend:
        return run(backend, *made)


def compare(cases, modes=BOTH, *, place=lambda made: made):
    """`cases`: labels and the arguments of tasks, which share batches. `place` may move the inputs of a task."""
    wanted = run(cpu(threads=2), *(task(*a, **p) for _, (a, p) in cases))
    for mode in modes:
        got = on_device(mode, *(place(task(*a, **p)) for _, (a, p) in cases))
        for (label, _), one, other in zip(cases, got, wanted, strict=True):
            assert_same_bits(one, other, f"{label}, {mode}")
    return wanted


FIXTURES = (emulation,)  # a test file binds it to this name
