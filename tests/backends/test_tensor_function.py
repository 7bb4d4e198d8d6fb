"""Functions of whole tensors (Whole): where they run, what they get, what becomes of what they return."""

import subprocess
import sys

import numpy as np
import pytest
import torch
import warpmerge as wm
from helpers import SINGLE, contents, run_cli, run_process, write_recipe, write_ties
from kernel_helpers import ALL_DTYPES, assert_same_bits, cpu, family, reference, run, task
from warpmerge.backends import tensor_function as whole
from warpmerge.dtypes import BY_NAME
from warpmerge.methods import REGISTRY
from warpmerge.requests import TensorFunction, WrittenFunction
from warpmerge.tasks import DeviceSink

pytestmark = pytest.mark.usefixtures("registry")

REFERENCE, METADATA, OPTIONAL = wm.Base.REFERENCE, wm.Base.METADATA, wm.Base.OPTIONAL


def define(combine, *, measure=None, base=REFERENCE, on_deltas=None):
    """A method `mine` that measures with one function and combines with another one."""
    on_deltas = base.is_reference if on_deltas is None else on_deltas

    def steps(tensor, p):
        if measure is not None:
            yield TensorFunction(measure, on_deltas)
        return TensorFunction(combine, on_deltas)

    steps.__module__ = "notebook"
    return wm.method("mine", base=base, passes=1 + (measure is not None))(steps)


@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (7,), (5, 3), (2, 3, 4)])
def test_deltas_come_in_the_tensors_shape_and_the_compute_type(dtype, shape):
    base, tuned = family(dtype, 3, shape)
    kind = torch.float64 if torch.float64 in {t.dtype for t in [base, *tuned]} else torch.float32
    seen = []

    def largest(tensors, given):
        seen.append([(t.shape, t.dtype) for t in [*tensors, given]])
        return torch.stack(tensors).amax(0)

    define(largest, measure=lambda tensors, given: None)
    deltas = [t.to(kind) - base.to(kind) for t in tuned]
    for backend in (cpu(threads=2), reference()):
        (got,) = run(backend, task("mine", tuned, base))
        assert_same_bits(got, (base.to(kind) + torch.stack(deltas).amax(0)).to(base.dtype))
    assert seen == [[(torch.Size(shape), kind)] * 4] * 2


def test_inputs_come_as_they_are_without_a_base():
    a, b = torch.arange(6.0).view(2, 3), torch.ones(2, 3)
    for base in (METADATA, OPTIONAL):
        REGISTRY.pop("mine", None)
        define(lambda tensors, given: tensors[0] * 2 + (given is None), base=base)
        assert wm.merge_tensors([a, b], "mine").tolist() == (a * 2 + 1).tolist()


def test_a_function_may_work_in_place():
    a, b = torch.ones(4), torch.full((4,), 5.0)
    define(lambda tensors, given: tensors[0].add_(tensors[1]), base=METADATA)
    assert wm.merge_tensors([a, b], "mine").tolist() == [6] * 4
    assert a.tolist() == [1] * 4 and b.tolist() == [5] * 4


def test_a_result_of_zero_leaves_the_bases_bits():
    base = torch.tensor([-0.0, 1.0, 3e-45])
    define(lambda tensors, given: tensors[0] * 0)
    assert_same_bits(wm.merge_tensors([base + 1], "mine", base=base), base)


def test_a_result_is_rounded_once():
    define(lambda tensors, given: torch.full_like(tensors[0], 2**-9).double() + 2.0**-30, base=METADATA)
    x = torch.zeros(3, dtype=torch.float64)
    got = wm.merge_tensors([x], "mine", out_dtype="bfloat16")
    assert got.dtype == torch.bfloat16 and got.tolist() == [2**-9] * 3


def test_empty_tensors_are_not_asked_about():
    define(lambda tensors, given: 1 / 0)
    assert wm.merge_tensors([torch.empty(0, 3)] * 2, "mine", base=torch.empty(0, 3)).shape == (0, 3)


def test_nonfinite_elements():
    base = torch.zeros(4)
    a = torch.tensor([1.0, float("nan"), float("inf"), 2.0])
    calls = []

    def total(tensors, given):
        calls.append(1)
        return tensors[0]

    define(total)
    with pytest.raises(wm.CheckpointError, match=r"2 of 4 in 'model 0'"):
        wm.merge_tensors([a], "mine", base=base)
    assert_same_bits(wm.merge_tensors([a], "mine", base=a), a)
    assert not calls
    assert wm.merge_tensors([a], "mine", base=base, nonfinite="base").tolist() == [1, 0, 0, 2]
    assert wm.merge_tensors([a], "mine", base=base, nonfinite="propagate").isnan().tolist() == [0, 1, 0, 0]
    (one, _), (other, _) = (task("mine", [a], base, nonfinite="propagate") for _ in range(2))
    counted = {
        backend.launch([(t, TensorFunction(total))]).wait()[0].nonfinite
        for t, backend in ((one, cpu()), (other, reference()))
    }
    assert counted == {(2, 0, 0)}


@pytest.mark.parametrize(
    ("function", "part"),
    [
        (lambda x, b: x[0][0], "a floating-point tensor of the shape [2, 3], but returned one of the shape [3]"),
        (lambda x, b: x[0].int(), "but returned a tensor of int32"),
        (lambda x, b: x[0].numpy(), "but returned a ndarray"),
        (lambda x, b: None, "but returned a NoneType"),
        (lambda x, b: 1 / 0, "method 'mine' failed on tensor 'w': ZeroDivisionError: division by zero."),
        (lambda x, b: torch.linalg.cholesky(x[0]), "method 'mine' failed on tensor 'w': RuntimeError: linalg.cholesky"),
    ],
)
def test_errors_name_method_and_tensor(function, part):
    define(function)
    for backend in ("cpu", "torch"):
        with pytest.raises(wm.MergeError) as error:
            wm.merge_tensors([torch.ones(2, 3)], "mine", base=torch.zeros(2, 3), name="w", backend=backend)
        assert part in str(error.value) and "'mine'" in str(error.value)


def test_too_little_memory_is_an_error_of_the_device():
    def greedy(tensors, given):
        raise MemoryError

    define(greedy)
    with pytest.raises(wm.DeviceError, match=r"too little memory for tensor 'w' \(\[2, 3\], 1 inputs\)"):
        wm.merge_tensors([torch.ones(2, 3)], "mine", base=torch.zeros(2, 3), name="w")


def test_errors_of_a_merge_error_come_through():
    def refuse(tensors, given):
        raise wm.CheckpointError("as it is")

    define(refuse)
    with pytest.raises(wm.CheckpointError, match=r"^as it is$"):
        wm.merge_tensors([torch.ones(2)], "mine", base=torch.zeros(2))


def test_torch_has_no_more_threads_than_the_merge():
    used, before = [], torch.get_num_threads()
    define(lambda tensors, given: used.append(torch.get_num_threads()) or tensors[0])
    torch.set_num_threads(2)
    try:
        for threads in (1, 2):
            run(cpu(threads=threads), task("mine", [torch.ones(3)], torch.zeros(3)))
        assert used == [1, 2] and torch.get_num_threads() == 2
        with pytest.raises(wm.MergeError):
            define(lambda tensors, given: 1 / 0)
            run(cpu(threads=1), task("mine", [torch.ones(3)], torch.zeros(3)))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_tensors_of_a_device_stay_there():
    """Operands that say they lie on a device are taken as torch tensors, and the result is put into one."""
    define(lambda tensors, given: tensors[0] + tensors[1])
    base, (a, b) = family("bf16", 2, (4, 5))
    made, result = task("mine", [a, b], base)
    for buffer, tensor in zip([*made.inputs, made.base], [a, b, base], strict=True):
        object.__setattr__(buffer, "device", "cpu")
        assert buffer.owner is tensor
    made.sinks = [DeviceSink(result.data_ptr(), result)]
    outcome = whole.carry_out(made, WrittenFunction(lambda x, given: x[0] + x[1]))
    assert outcome.value is None
    assert_same_bits(result, wm.merge_tensors([a, b], "mine", base=base))
    assert BY_NAME["bfloat16"] == made.out_dtype


PLUGIN = """
import sys
import warpmerge as wm
from warpmerge.requests import TensorFunction, WrittenFunction
@wm.method("mine", base=wm.Base.REFERENCE)
def mine(tensor, p):
    return TensorFunction(lambda x, base: (x[0] + x[1]) / 2)
    yield
"""


def test_files(tmp_path):
    """The same bits from both backends, and as the compiled kernel has them."""
    models = write_ties(tmp_path)
    document = {"merge_method": "mine", "base_model": "base", "models": ["a", "b"]}
    recipe = write_recipe(models / "w.yml", document)
    for backend in ("cpu", "torch"):
        done = run_process("merge", recipe, backend, "--backend", backend, "--threads", 1, setup=PLUGIN, cwd=tmp_path)
        assert (done.status, done.stderr) == (0, "")
    assert contents(models / "cpu")[SINGLE] == contents(models / "torch")[SINGLE]
    document = {**document, "merge_method": "task_arithmetic", "parameters": {"weight": 0.5}}
    for model in ("base", "a", "b"):
        document = {k: str(models / v) if v == model else v for k, v in document.items()}
    document["models"] = [str(models / m) for m in ("a", "b")]
    assert run_cli("merge", write_recipe(models / "t.yml", document), models / "mean").status == 0
    assert run_cli("verify", models / "cpu").status == 0
    assert contents(models / "cpu")[SINGLE] == contents(models / "mean")[SINGLE]


def test_without_torch(tmp_path):
    """Only a method that asks for whole tensors needs it."""
    models = write_ties(tmp_path)
    hidden = "import sys\nsys.modules['torch'] = None\n"
    assert run_process("merge", models / "r.yml", models / "out", setup=hidden).status == 0
    recipe = write_recipe(models / "w.yml", {"merge_method": "mine", "base_model": "base", "models": ["a", "b"]})
    done = run_process("merge", recipe, "whole", setup=hidden + PLUGIN, cwd=tmp_path)
    assert done.status == 1 and "a method that works on whole tensors needs torch" in done.stderr


def test_importing_the_backend_imports_no_torch():
    code = "import sys, warpmerge.backends.cpu; assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_arrays_of_numpy():
    define(lambda tensors, given: torch.minimum(*tensors), base=METADATA)
    got = wm.merge_tensors([np.arange(3.0), np.ones(3)], "mine")
    assert isinstance(got, np.ndarray) and got.tolist() == [0, 1, 1]
