"""On a GPU: both sets of kernels give the CPU's bits, for tensors of the device, of the host and in files, and stay in
step with what the caller does on the device. `make gpu` runs these; elsewhere they are skipped.
"""

import numpy as np
import pytest
import torch
import warpmerge as wm
from kernel_helpers import ALL_DTYPES, DTYPES, assert_same_bits, family
from test_equality import CASES, SHAPES, arguments, models_of
from warpmerge import backends

pytestmark = pytest.mark.gpu
DEVICE = "cuda:0"
SIZES = [*SHAPES, (3 * 16384 + 4097,), (70_001,)]  # several chunks; and a sample of a search
MODELS = (1, 2, 3, 5, 9)
ONE_PASS = {
    "linear": {"weight": [0.5, 0.3, 0.2]},
    "task_arithmetic": {"weight": [0.5, 0.3, 0.2]},
    "dare_linear": {"weight": 0.5, "density": 0.5, "rescale": "inverse_density"},
    "dare_ties": {"weight": 0.5, "density": 0.5, "rescale": "inverse_density"},
}
TIES = {"weight": [0.5, 0.3, 0.2], "density": 0.5}


def need(backend):
    reason = backends.find(backend).reason or (None if torch.cuda.is_available() else "torch sees no GPU")
    if reason:
        pytest.skip(f"{backend}: {reason}")


@pytest.fixture(params=["cuda", "triton"])
def backend(request):
    need(request.param)
    return request.param


def on(device, tensors):
    return {name: t.to(device) for name, t in tensors.items()}


def misaligned(tensor):
    """The same values one element behind an aligned address."""
    room = torch.empty(tensor.numel() + 1, dtype=tensor.dtype, device=tensor.device)
    room[1:] = tensor.reshape(-1)
    return room[1:].view(tensor.shape)


def check(backend, method, models, base=None, *, place=lambda t: t.to(DEVICE), **parameters):
    """State dicts of the host, merged where `place` puts their tensors, come out as on the CPU."""
    wanted = wm.merge_state_dicts(models, method, base=base, backend="cpu", **parameters)
    placed = [{n: place(t) for n, t in m.items()} for m in models]
    origin = None if base is None else {n: place(t) for n, t in base.items()}
    got = wm.merge_state_dicts(placed, method, base=origin, backend=backend, **parameters)
    for name, tensor in wanted.items():
        assert got[name].device == next(iter(placed[0].values())).device
        assert_same_bits(got[name].cpu(), tensor, (method, name))


def state_dicts(case, models, dtype, sizes):
    """The arguments of `check`: a tensor for each size."""
    made = {str(size): arguments(case, models, dtype, size) for size in sizes}
    (method, tensors, base), parameters = next(iter(made.values()))
    dicts = [{name: a[0][1][k] for name, a in made.items()} for k in range(len(tensors))]
    return (method, dicts, None if base is None else {n: a[0][2] for n, a in made.items()}), parameters


def combinations():
    """Everything for the compiled kernels; Triton compiles each combination anew, so it gets a cross of them."""
    for case in CASES:
        counts = [k for k in models_of(case) if k in MODELS]
        for models in counts:
            for dtype in ALL_DTYPES:
                yield "cuda", case, models, dtype
                if dtype == "bf16" or models == min(3, max(counts)):
                    yield "triton", case, models, dtype


@pytest.mark.parametrize(("backend", "case", "models", "dtype"), list(combinations()))
def test_methods(backend, case, models, dtype):
    need(backend)
    positional, parameters = state_dicts(case, models, dtype, SIZES)
    check(backend, *positional, **parameters)


@pytest.mark.parametrize("case", ["linear", "ties", "dare_linear", "slerp"])
@pytest.mark.parametrize("target", DTYPES)
def test_out_dtypes(backend, case, target):
    for source in DTYPES if backend == "cuda" else ["bf16", "fp64"]:
        positional, parameters = state_dicts(case, min(3, max(models_of(case))), source, [(1031,)])
        check(backend, *positional, out_dtype=DTYPES[target], **parameters)


PLACES = {
    "misaligned": lambda t: misaligned(t.to(DEVICE)),
    "transposed": lambda t: t.to(DEVICE).t().contiguous().t(),
    "every other": lambda t: torch.repeat_interleave(t.to(DEVICE), 2, dim=0)[::2],
    "with a gradient": lambda t: t.to(DEVICE).requires_grad_(),
    "of the host": lambda t: t,
    "misaligned, of the host": misaligned,
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("case", ["linear", "ties", "dare_ties-l1", "slerp", "passthrough-copy"])
def test_places(backend, case, place):
    sizes = [(67, 129), (300, 401), (0, 3), (1, 1)]
    positional, parameters = state_dicts(case, min(3, max(models_of(case))), "bf16", sizes)
    check(backend, *positional, place=PLACES[place], **parameters)


def test_numpy_arrays(backend):
    base, tensors = family("fp32", 3, 5003)
    got = wm.merge_tensors([t.numpy() for t in tensors], "ties", base=base.numpy(), backend=backend, **TIES)
    wanted = wm.merge_tensors(tensors, "ties", base=base, backend="cpu", **TIES)
    assert isinstance(got, np.ndarray)
    assert_same_bits(torch.from_numpy(got), wanted)


def test_device_of_the_tensors_chooses_the_backend(backend):
    tensors = [t.to(DEVICE) for t in family("bf16", 2, 1000)[1]]
    merged = wm.merge_tensors(tensors, "linear", weight=1)
    assert merged.device == tensors[0].device


@pytest.mark.parametrize("policy", ["propagate", "base"])
def test_nonfinite(backend, policy):
    base, tensors = family("bf16", 3, 40_000)
    tensors[1][[3, 17_000]] = torch.tensor([float("nan"), float("-inf")], dtype=torch.bfloat16)
    models = [{"w": t} for t in tensors]
    for method in ("ties", "dare_linear", "task_arithmetic"):
        parameters = {"weight": 0.5} if method == "task_arithmetic" else {"weight": 0.5, "density": 0.5}
        check(backend, method, models, {"w": base}, nonfinite=policy, **parameters)
        with pytest.raises(wm.CheckpointError, match="2 of 40,000 in 'model 1'"):
            check_on_device = [{"w": t.to(DEVICE)} for t in tensors]
            wm.merge_state_dicts(check_on_device, method, base={"w": base.to(DEVICE)}, backend=backend, **parameters)


def test_tensors_of_different_devices(backend):
    _, (a, b) = family("bf16", 2, 100)
    for pair in ([a.to(DEVICE), b], [a, b.to(DEVICE)]):
        with pytest.raises(wm.UsageError, match="move all to one device"):
            wm.merge_tensors(pair, "linear", weight=1, backend=backend)


# --- streams --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [*ONE_PASS, "ties"])
def test_side_stream(backend, method):
    """Operands that are still being made there are waited for, and the result can be used there at once."""
    parameters = ONE_PASS.get(method, TIES)
    base, tensors = family("bf16", 3, 1 << 20)
    origin = None if method == "linear" else base
    wanted = wm.merge_tensors(tensors, method, base=origin, backend="cpu", **parameters)
    sources = [t.to(DEVICE) for t in (*tensors, base)]
    for nonfinite in ("error", "propagate"):
        late = [torch.zeros_like(t) for t in sources]
        torch.cuda.synchronize()
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(100_000_000)
            for target, source in zip(late, sources, strict=True):
                target.copy_(source)
            start = None if method == "linear" else late[-1]
            merged = wm.merge_tensors(late[:-1], method, base=start, backend=backend, nonfinite=nonfinite, **parameters)
            doubled = merged * 2
            for target in late:  # the merge has been queued: it must not see this
                target.zero_()
        stream.synchronize()
        assert_same_bits(doubled.cpu(), wanted * 2, (method, nonfinite))


@pytest.fixture
def no_waits(monkeypatch):
    """A context in which waiting for the device is an error."""
    from warpmerge.backends.gpu.torch_runtime import TorchEvent

    class Context:
        def __enter__(self):
            torch.cuda.synchronize()
            self.patch = pytest.MonkeyPatch()
            self.patch.setattr(TorchEvent, "synchronize", lambda event: pytest.fail("waited for an event"))
            torch.cuda.set_sync_debug_mode("error")

        def __exit__(self, *_):
            torch.cuda.set_sync_debug_mode("default")
            self.patch.undo()

    return Context()


@pytest.mark.parametrize("method", ONE_PASS)
def test_one_pass_does_not_wait(backend, method, no_waits):
    base, tensors = family("bf16", 3, 100_000)
    origin, models = base.to(DEVICE), [t.to(DEVICE) for t in tensors]

    def merge():
        start = None if method == "linear" else origin
        return wm.merge_tensors(models, method, base=start, backend=backend, nonfinite="propagate", **ONE_PASS[method])

    merge()  # kernels are loaded or compiled
    with no_waits:
        merged = merge()
    start = None if method == "linear" else base
    assert_same_bits(merged.cpu(), wm.merge_tensors(tensors, method, base=start, backend="cpu", **ONE_PASS[method]))


# --- pools ----------------------------------------------------------------------------------------------------------


def tiny_models(models=3):
    """State dicts with tied, integer and empty tensors."""
    parts = {str(shape): family("bf16", models, shape, seed=shape[0]) for shape in [(70_001,), (33, 129), (9,), (0,)]}
    dicts = [{n: (t[k - 1] if k else b) for n, (b, t) in parts.items()} for k in range(models + 1)]
    for made in dicts:
        made["tied"], made["steps"] = made["(9,)"], torch.arange(5)
    return dicts[0], dicts[1:]


def test_pool(backend, no_waits):
    base, models = tiny_models()
    pool = wm.Pool(base, models, device=DEVICE, backend=backend)
    target = {n: torch.zeros_like(t, device=DEVICE) for n, t in base.items()}
    target["tied"] = target["(9,)"]
    for method, parameters in {**ONE_PASS, "ties": TIES}.items():
        start = None if method == "linear" else base
        wanted = wm.merge_state_dicts(models, method, base=start, backend="cpu", **parameters)
        got = pool.merge(method, **parameters)
        if method in ONE_PASS:
            with no_waits:
                pool.merge(method, into=target, **parameters)
        else:
            pool.merge(method, into=target, **parameters)
        for name, tensor in wanted.items():
            assert_same_bits(got[name].cpu(), tensor, (method, name))
            assert_same_bits(target[name].cpu(), tensor, (method, name, "into"))
        assert got["tied"] is got["(9,)"]


def test_sweep(backend):
    base, models = tiny_models()
    rows = [[0.1 * m, 0.9 - 0.1 * m, -0.2] for m in range(8)]
    for origin in (base, None):
        swept = wm.Pool(origin, models, device=DEVICE, backend=backend).sweep(rows)
        for row, got in zip(rows, swept, strict=True):
            if origin is None:
                wanted = wm.merge_state_dicts(models, "linear", weight=row, normalize=False, backend="cpu")
            else:
                wanted = wm.merge_state_dicts(models, "task_arithmetic", base=base, weight=row, backend="cpu")
            for name, tensor in wanted.items():
                assert_same_bits(got[name].cpu(), tensor, (row, name))
