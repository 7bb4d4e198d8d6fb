"""The CUDA kernels and the host's side of a GPU give the bits of the CPU, on the emulated device: in device memory as a
whole and in tiles, with work done at once and as late as it may be.
"""

import itertools
import math

import pytest
import torch
from device_modes import BOTH, FIXTURES, MODES, compare, device, on_device
from kernel_helpers import (
    ALL_DTYPES,
    DTYPES,
    assert_same_bits,
    changed,
    cpu,
    densities,
    family,
    run,
    signed,
    task,
    unaligned,
    weights,
)
from test_equality import CASES, SHAPES, UNALIGNED, arguments, models_of, offset_by
from test_equality_adversarial import NONFINITE, salted
from warpmerge.backends.gpu.tables import CHUNK
from warpmerge.errors import CheckpointError
from warpmerge.methods import TensorInfo

(emulation,) = FIXTURES

TILED = 2 * CHUNK + 4097  # elements: several tiles of a chunk each, the last one with a block and a rest
# Kernels see flat indices: a call of the generator and a rest, vectors and a rest, a block exactly, and a rest.
FLAT = [shape for shape in SHAPES if shape in ((0,), (1,), (9,), (127,), (4096,), (4099,))]


# The kernels have a form for 1 to 4 models each and a general one.
@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize("models", [1, 2, 3, 4, 5])
def test_methods_and_shapes(models, dtype):
    """Every method at once: requests of all kinds share a residency."""
    cases = []
    for case in [c for c in CASES if models in models_of(c)]:
        cases += [((case, shape), arguments(case, models, dtype, shape)) for shape in FLAT]
        cases.append(((case, "unaligned"), arguments(case, models, dtype, UNALIGNED, offset=True)))
    compare(cases, ["resident", "resident, late"] if models % 2 else ["tiled", "small batches"])


@pytest.mark.parametrize("dtype", ["bf16", "fp32", "mixed64"])
def test_several_chunks(dtype):
    cases = []
    for case in CASES:
        models = min(3, max(models_of(case)))
        cases.append((case, arguments(case, models, dtype, TILED)))
    compare(cases, ["resident", "tiled"] if dtype == "fp32" else ["tiled, late"])


@pytest.mark.parametrize(("models", "dtype"), [(9, "bf16"), (9, "mixed64"), (12, "bf16"), (12, "mixed"), (40, "fp16")])
def test_many_models(models, dtype):
    cases = []
    for case in ["linear", "ties", "ties-paper", "dare_linear", "dare_ties-l1"]:
        method, parameters = case.split("-")[0], CASES[case](9)
        for name, value in parameters.items():
            if isinstance(value, list):
                parameters[name] = (value * 5)[:models]
        for shape in (129, CHUNK + 77):
            base, tensors = family(dtype, models, shape)
            cases.append(((case, shape), ((method, tensors, None if method == "linear" else base), parameters)))
    compare(cases)


def test_every_pair_of_dtypes():
    cases = []
    for case, source, target in itertools.product(["linear", "ties", "dare_linear", "slerp"], DTYPES, DTYPES):
        positional, parameters = arguments(case, min(3, max(models_of(case))), source, 1031)
        cases.append(((case, source, target), (positional, {"out_dtype": DTYPES[target], **parameters})))
    for source, target in itertools.product(DTYPES, DTYPES):
        positional, _ = arguments("passthrough", 1, source, 1031)
        cases.append((("copy", source, target), (positional, {"out_dtype": DTYPES[target]})))
    compare(cases)


@pytest.mark.parametrize("place", ["memory", "file"])
@pytest.mark.parametrize("mode", MODES)
def test_inputs_at_odd_places(place, mode, tmp_path):
    with open(tmp_path / "tensors", "w+b") as file:

        def move(made):
            one, result = made
            at = file if place == "file" else None
            inputs, base = [offset_by(b, at) for b in one.inputs], one.base and offset_by(one.base, at)
            return changed(one, inputs=inputs, base=base), result

        cases = [
            ((case, count), arguments(case, min(2, max(models_of(case))), "fp32", count))
            for case in ["linear", "ties", "dare_linear", "slerp", "passthrough-copy"]
            for count in (9001, CHUNK + 1)
        ]
        compare(cases, [mode], place=move)


@pytest.mark.parametrize("mode", ["resident", "small batches", "tiled, late"])
def test_many_tensors(mode):
    """More than a launch's worth of thread blocks, of methods with different numbers of passes."""
    cases = []
    for i in range(400):
        case = ("ties", "linear", "dare_linear", "slerp")[i % 4]
        positional, parameters = arguments(case, 2, ("bf16", "fp32")[i // 4 % 2], 37 * i % 1500)
        cases.append((f"{case} {i}", (positional, {"name": f"tensor {i}", **parameters})))
    compare(cases, [mode])


def test_more_tensors_than_a_batch_holds():
    cases = []
    for i in range(1500):
        positional, parameters = arguments("linear" if i % 10 else "ties-half", 2, "bf16", i % 13)
        cases.append((i, (positional, {"name": f"tensor {i}", **parameters})))
    compare(cases, ["resident"])


def test_groups_of_different_sizes_share_a_residency():
    """A search that goes on after others have begun finds its operands where it left them."""
    cases = []
    for dtype, count in [("fp32", CHUNK), ("bf16", 5 * CHUNK), ("fp64", CHUNK), ("fp16", 3 * CHUNK), ("fp32", 99)]:
        cases += [((case, dtype), arguments(case, 2, dtype, count)) for case in ["ties", "dare_ties-l1", "linear"]]
    compare(cases, ["tiled", "tiled, late"])


# --- not finite -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["propagate", "base"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_not_finite(dtype, policy):
    cases = []
    for case, kind in itertools.product(NONFINITE, ["inf", "nan", "both"]):
        method, parameters = case.split("-")[0], dict(NONFINITE[case])
        base, tensors = salted(dtype, 2 if method == "slerp" else 3, kind)
        if "weight" in parameters:
            parameters["weight"] = {"weights": weights, "signed": signed}[parameters["weight"]](3)
        on_deltas = method not in ("linear", "slerp")
        cases.append(
            ((case, kind), ((method, tensors, base if on_deltas else None), {"nonfinite": policy, **parameters}))
        )
    compare(cases)


REFUSED = {
    "linear": {"weight": 1},
    "task_arithmetic": {"weight": 1},
    "ties": {"weight": 1, "density": 0.5},
    "dare_linear": {"weight": 1, "density": 0.5},
    "dare_ties": {"weight": 1, "density": 0.5, "rescale": "l1"},
    "slerp": {"t": 0.5},
}


@pytest.mark.parametrize("mode", BOTH)
@pytest.mark.parametrize("method", REFUSED)
def test_the_count_of_what_is_not_finite(method, mode):
    """The same message as on the CPU, and the backend can be used afterwards."""
    on_deltas = method not in ("linear", "slerp")
    base, tensors = family("fp32", 2, TILED)
    spoiled = [t.clone() for t in tensors]
    spoiled[0][[5, CHUNK, TILED - 1]] = math.inf
    spoiled[1][2 * CHUNK + 7] = math.nan
    one = method, spoiled, base if on_deltas else None
    with pytest.raises(CheckpointError) as wanted:
        run(cpu(), task(*one, **REFUSED[method]))
    assert f"3 of {TILED:,}" in str(wanted.value) and f"1 of {TILED:,}" in str(wanted.value)
    good = method, tensors, base if on_deltas else None
    result = run(cpu(), task(*good, **REFUSED[method]))[0]
    with device(mode, [task(*good, **REFUSED[method])[0]]) as backend:
        for _ in range(2):
            with pytest.raises(CheckpointError) as got:
                run(backend, task(*good, **REFUSED[method]), task(*one, **REFUSED[method]))
            assert str(got.value) == str(wanted.value)
            assert_same_bits(run(backend, task(*good, **REFUSED[method]))[0], result)


@pytest.mark.parametrize("mode", BOTH)
def test_frozen_tensors_that_are_not_finite(mode):
    """Equal in all models: copied, whatever shares their batch."""
    cases = []
    for i, case in enumerate(["linear", "ties", "ties-paper", "dare_linear", "dare_ties-l1", "slerp"] * 4):
        positional, parameters = arguments(case, 2, "bf16", 4099 + i)
        if i % 3 == 1:
            method, tensors, base = positional
            tensors[0][17] = math.nan
            tensors[0][4098] = -math.inf
            positional = method, [tensors[0], tensors[0].clone()], None if base is None else tensors[0].clone()
        cases.append(((case, i), (positional, parameters)))
    compare(cases, [mode])


# --- several outputs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("on_deltas", [False, True])
def test_several_outputs(on_deltas, mode):
    """A sweep: M outputs from one read, and among them a tensor of NaN that no model changes."""
    from warpmerge.engine.memory_merge import Fixed
    from warpmerge.requests import WeightedSum
    from warpmerge.tasks import MemorySink

    rows = [(1.0, 0.0, 0.0), (0.2, 0.3, 0.5), (-0.7, 1.9, 0.1), (0.0, 0.0, 0.0)]

    def made(count, dtype, frozen):
        base, tensors = family(dtype, 3, count)
        if frozen:
            base[3] = math.nan
            tensors = [base.clone() for _ in tensors]
        one, _ = task("task_arithmetic", tensors, base if on_deltas else None, weight=1)
        results = [torch.full_like(base, 7) for _ in rows]
        method = Fixed(WeightedSum(sum(rows, ()), on_deltas))
        sinks = [MemorySink(r.data_ptr(), r) for r in results]
        return changed(one, info=TensorInfo("w", count, 3), method=method, sinks=sinks), results

    def tasks():
        return [
            made(count, dtype, frozen)
            for count, frozen in [(TILED, False), (9, False), (4099, True), (0, False)]
            for dtype in ("bf16", "fp32")
        ]

    wanted, got = run(cpu(), *tasks()), on_device(mode, *tasks())
    for results, others in zip(got, wanted, strict=True):
        for one, other in zip(results, others, strict=True):
            assert_same_bits(one, other, mode)


def test_views_inside_one_tensor():
    """Models that overlap in memory, and one that is the base itself."""
    room = torch.randn(CHUNK + 9, generator=torch.Generator().manual_seed(0))
    views = [unaligned(room)[k : k + CHUNK] for k in range(4)]
    cases = [
        ("linear", (("linear", views[:3], None), {"weight": weights(3)})),
        ("ties", (("ties", [views[1], views[2], views[0]], views[0]), {"weight": weights(3), "density": densities(3)})),
    ]
    compare(cases, MODES)
