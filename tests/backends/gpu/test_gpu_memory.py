"""On a GPU: what fills its memory, so that nothing else should run beside it."""

import pytest
import torch
import warpmerge as wm
from helpers import bf16, looks_complete, run_cli, write_model, write_recipe
from kernel_helpers import assert_same_bits
from test_gpu import DEVICE, backend
from test_gpu_files import weights_in

__all__ = ["backend"]  # a fixture
pytestmark = pytest.mark.gpu
LARGE = 2**31 + 70_001  # elements
LARGE_BYTES = 60 << 30
PIECE = 1 << 28


# --- memory that others have taken ----------------------------------------------------------------------------------


def take_all_but(nbytes):
    """Allocates until no more than `nbytes` are free."""
    taken = []
    size = 1 << 34
    torch.cuda.empty_cache()
    while size >= 1 << 20:
        if torch.cuda.mem_get_info(0)[0] - size < nbytes:
            size //= 2
            continue
        try:
            taken.append(torch.empty(size, dtype=torch.uint8, device=DEVICE))
        except torch.cuda.OutOfMemoryError:
            size //= 2
    return taken


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """Tensors of which a batch needs 200 MB of device memory."""
    folder = tmp_path_factory.mktemp("models")
    generator = torch.Generator().manual_seed(0)
    for name in ("base", "a", "b"):
        values = torch.randn(5000, 5000, generator=generator).numpy()
        write_model(folder / name, {"layer.weight": bf16(values)})
    document = {
        "merge_method": "ties",
        "base_model": str(folder / "base"),
        "models": [str(folder / "a"), str(folder / "b")],
        "parameters": {"weight": 0.5, "density": 0.5},
    }
    return write_recipe(folder / "r.yml", document)


def merge(recipe, out, backend, *options):
    return run_cli("merge", recipe, out, "--quiet", "--backend", backend, *options)


def test_little_free_memory_is_enough(backend, recipe, tmp_path):
    """What is free is counted first, and tensors are worked on in tiles."""
    assert merge(recipe, tmp_path / "before", backend).status == 0  # kernels are loaded
    taken = take_all_but(96 << 20)
    try:
        done = merge(recipe, tmp_path / "gpu", backend)
    finally:
        del taken
        torch.cuda.empty_cache()
    assert done.status == 0, done.stderr
    assert merge(recipe, tmp_path / "cpu", "cpu").status == 0
    assert weights_in(tmp_path / "gpu") == weights_in(tmp_path / "before") == weights_in(tmp_path / "cpu")


def test_no_free_memory_is_an_error(backend, recipe, tmp_path):
    assert merge(recipe, tmp_path / "before", backend).status == 0
    taken = take_all_but(4 << 20)
    try:
        done = merge(recipe, tmp_path / "gpu", backend, "--device-memory", "8GB")
    finally:
        del taken
        torch.cuda.empty_cache()
    assert done.status == 1
    assert "--device-memory" in done.stderr and "--device cpu" in done.stderr
    assert not looks_complete(tmp_path / "gpu")


# --- tensors with more elements than 32 bits count ------------------------------------------------------------------


@pytest.fixture(scope="module")
def large():
    """Two models in bfloat16 without zeros."""
    if not torch.cuda.is_available() or torch.cuda.mem_get_info(0)[0] < LARGE_BYTES:
        pytest.skip("needs a GPU with 60 GB of free memory")
    models = []
    for seed in range(2):
        model = torch.empty(LARGE, dtype=torch.bfloat16, device=DEVICE)
        generator = torch.Generator(DEVICE).manual_seed(seed)
        for part in model.split(PIECE):
            part.copy_(torch.randn(part.numel(), generator=generator, device=DEVICE).mul_(0.02))
            part[part == 0] = 1e-3
        models.append(model)
    yield models
    models.clear()
    torch.cuda.empty_cache()


def windows():
    """The ends, and where 32 bits are no longer enough for an index or for bytes."""
    return [slice(max(0, at - 5000), min(LARGE, at + 5000)) for at in (0, 2**30, 2**31 - 1, LARGE)]


def test_large_linear(backend, large):
    merged = wm.merge_tensors(large, "linear", weight=[0.7, 0.4], backend=backend)
    for window in windows():
        part = [m[window].cpu() for m in large]
        assert_same_bits(merged[window].cpu(), wm.merge_tensors(part, "linear", weight=[0.7, 0.4], backend="cpu"))


def test_large_ties(backend, large):
    """Of one model on a base of zeros the merge is what is kept of it: as much as asked for, and the largest."""
    model, density = large[0], 0.3
    base = torch.zeros_like(model)
    merged = wm.merge_tensors([model], "ties", base=base, weight=1, density=density, backend=backend)
    del base
    kept, least, most, last_kept, first_dropped = 0, float("inf"), 0.0, -1, LARGE
    for start in range(0, LARGE, PIECE):
        x, y = model[start : start + PIECE], merged[start : start + PIECE]
        keep = y != 0
        assert torch.equal(y[keep], x[keep])
        kept += int(keep.sum())
        least = min(least, float(x[keep].abs().min()))
        most = max(most, float(x[~keep].abs().max()))
    assert kept == int(density * LARGE)
    assert most <= least
    for start in range(0, LARGE, PIECE):  # of equal magnitudes the first are kept
        x, y = model[start : start + PIECE], merged[start : start + PIECE]
        ties = x.abs() == least
        kept_ties, dropped_ties = torch.nonzero(ties & (y != 0)), torch.nonzero(ties & (y == 0))
        if len(kept_ties):
            last_kept = max(last_kept, start + int(kept_ties[-1]))
        if len(dropped_ties):
            first_dropped = min(first_dropped, start + int(dropped_ties[0]))
    assert last_kept < first_dropped
