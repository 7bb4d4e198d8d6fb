"""The compiled kernels give the bits of the readable reference: every method, dtype, number of models and shape, on
every instruction set, for any number of threads and any tile. For inputs that are meant to hurt see
test_equality_adversarial.py.
"""

import dataclasses
import itertools

import pytest
import torch
from kernel_helpers import (
    ALL_DTYPES,
    CONFIGURATIONS,
    DTYPES,
    ISAS,
    assert_same_bits,
    changed,
    cpu,
    densities,
    family,
    merge,
    native_file,
    reference,
    run,
    signed,
    task,
    unaligned,
    weights,
)
from warpmerge.methods import find
from warpmerge.models.views import FileRegion

SHAPES = [
    (0,),  # nothing to do, nothing to divide by
    (1,),  # every density keeps it
    (7,),  # below one call of the generator, below every vector
    (8,),  # exactly one call
    (9,),  # one call and a rest
    (127,),  # vectors and a rest
    (4096,),  # exactly one block of the reduction order, eight stages
    (4099,),  # a block and a rest
    (3, 5, 67),  # flat indices run over all dimensions
]
UNALIGNED = 1031  # elements of a view that starts in the middle of a vector
LARGE = 300_007  # several default tiles, and a sample in `select` instead of a look at everything

CASES = {
    "linear": lambda k: {"weight": weights(k)},
    "linear-sum": lambda k: {"weight": signed(k), "normalize": False},
    "task_arithmetic": lambda k: {"weight": signed(k), "lambda_": 0.7},
    "ties": lambda k: {"weight": weights(k), "density": densities(k), "lambda_": 1.1},
    "ties-half": lambda k: {"weight": signed(k), "density": 0.5, "normalize": False, "elect": "unweighted"},
    "ties-paper": lambda k: {"weight": 1, "density": 0.2, "divisor": "count", "ties": "keep_all", "rescale": "l1"},
    "dare_linear": lambda k: {"weight": weights(k), "density": densities(k), "normalize": True},
    "dare_ties": lambda k: {"weight": weights(k), "density": 0.6, "rescale": "inverse_density"},
    "dare_ties-l1": lambda k: {"weight": signed(k), "density": densities(k), "elect": "unweighted"},
    "slerp": lambda k: {"t": 0.3},
    "nuslerp": lambda k: {"weight": [1, 2]},
    "nuslerp-alone": lambda k: {"weight": [1, 2]},  # `on_deltas` without a base
    "model_stock": lambda k: {},
    "krum": lambda k: {},  # a copy after a measurement
    "geometric_median": lambda k: {"weight": weights(k)},
    "passthrough": lambda k: {"scale": 1.7},
    "passthrough-copy": lambda k: {},
}
MODELS = (1, 2, 3, 4, 5, 9)  # the kernels unroll up to 4 and have a general form for more
# For methods that differ from others in what they solve only, a number that no other of them has.
FEW = {"slerp": (2,), "nuslerp": (2,), "model_stock": (3,), "krum": (5,), "geometric_median": (9,), "passthrough": (1,)}


def models_of(case):
    return FEW.get(case.split("-")[0], MODELS)


def arguments(case, models, dtype, shape, *, offset=False):
    """Inputs and parameters of a task; without a base where the method takes none."""
    base, tensors = family(dtype, models, shape)
    if offset:
        base, tensors = unaligned(base), [unaligned(t) for t in tensors]
    method = case.split("-")[0]
    on_deltas = find(method).base.is_reference and not case.endswith("-alone")
    return (method, tensors, base if on_deltas else None), CASES[case](models)


def compare(cases, configurations):
    """`cases`: labels and the arguments of tasks. Each configuration runs all of them in one batch."""
    wanted = run(reference(), *(task(*a, **p) for _, (a, p) in cases))
    for configuration in configurations:
        got = run(cpu(*configuration), *(task(*a, **p) for _, (a, p) in cases))
        for (label, _), one, other in zip(cases, got, wanted, strict=True):
            assert_same_bits(one, other, f"{label} on {configuration}")


@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize(("case", "models"), [(c, k) for c in CASES for k in models_of(c)])
def test_shapes(case, models, dtype):
    cases = [(shape, arguments(case, models, dtype, shape)) for shape in SHAPES]
    cases.append(("unaligned", arguments(case, models, dtype, UNALIGNED, offset=True)))
    compare(cases, CONFIGURATIONS)


@pytest.mark.parametrize("dtype", ["bf16", "fp32", "mixed64"])
@pytest.mark.parametrize("case", CASES)
def test_many_tiles(case, dtype):
    cases = [(LARGE, arguments(case, min(3, max(models_of(case))), dtype, LARGE))]
    compare(cases, [(isa, 2, None) for isa in ISAS] + [(ISAS[0], 2, 512), (ISAS[0], 1, 8192)])


@pytest.mark.parametrize("case", ["linear", "ties", "dare_linear", "slerp"])
def test_every_pair_of_dtypes(case):
    """Inputs of one dtype, output of another; float64 inputs to a 16-bit output must not be rounded twice."""
    models = min(3, max(models_of(case)))
    cases = []
    for source, target in itertools.product(DTYPES, DTYPES):
        positional, parameters = arguments(case, models, source, 1031)
        cases.append((f"{source} to {target}", (positional, {"out_dtype": DTYPES[target], **parameters})))
    compare(cases, [(isa, 2, 512) for isa in ISAS])


@pytest.mark.parametrize("target", DTYPES)
def test_copies_convert(target):
    cases = []
    for source in DTYPES:
        positional, _ = arguments("passthrough", 1, source, 1031)
        cases.append((source, (positional, {"out_dtype": DTYPES[target]})))
    compare(cases, [(isa, 1, 512) for isa in ISAS])


@pytest.mark.parametrize("place", ["memory", "file"])
@pytest.mark.parametrize("case", ["linear", "ties", "dare_linear", "slerp", "passthrough-copy"])
def test_inputs_at_odd_places(case, place, tmp_path):
    """A safetensors file guarantees no alignment, not even to an element."""
    (method, tensors, base), parameters = arguments(case, min(2, max(models_of(case))), "fp32", 9001)
    wanted = merge(reference(), method, tensors, base, **parameters)
    with open(tmp_path / "tensors", "w+b") as file:
        for isa in ISAS:
            made, result = task(method, tensors, base, **parameters)
            at = file if place == "file" else None
            inputs, base_at = [offset_by(b, at) for b in made.inputs], made.base and offset_by(made.base, at)
            made = changed(made, inputs=inputs, base=base_at)
            run(cpu(isa, 2, 512), (made, result))
            assert_same_bits(result, wanted, isa)


def offset_by(buffer, file):
    """The same bytes one behind an even address, or an even offset in a file."""
    if file is None:
        room = torch.empty(buffer.nbytes + 1, dtype=torch.uint8)
        room[1:] = buffer.owner.reshape(-1).view(torch.uint8)
        return dataclasses.replace(buffer, address=room.data_ptr() + 1, owner=room)
    offset = file.seek(0, 2) | 1
    file.seek(offset)
    file.write(bytes(buffer.read()))
    file.flush()
    return FileRegion(buffer.dtype, buffer.shape, native_file(file), offset)


def test_many_tensors_in_flight():
    """Several batches under way at once, with different numbers of passes, come out as one by one."""
    cases = []
    for i in range(300):  # more than a batch
        case = ("ties", "linear", "dare_linear", "slerp")[i % 4]
        positional, parameters = arguments(case, 2, ("bf16", "fp32")[i % 2], 1 + 37 * i % 1500)
        cases.append((f"{case} {i}", (positional, {"name": f"tensor {i}", **parameters})))
    compare(cases, [(ISAS[0], 2, 512)])
