"""Odd tensors for the methods that look at rows, columns and ranks, what they refuse, and recipes of them."""

import oracles
import pytest
import torch
import warpmerge as wm
from helpers import array, llama, read_model, write_model
from kernel_helpers import DTYPES, assert_same_bits, cpu, family, reference, run, task
from oracles import assert_accurate
from test_row_methods import CASES, drawing, expected, merged, method_of, tensor
from warpmerge.errors import CheckpointError, UsageError
from warpmerge.methods import find

ONE = tensor([1, 2, -2, 0.5], [0.25, -3, 1, 1])
RIGHT = tensor([0, 3, 0, 0], [1, 0, 0, 0])
ODD = {
    "identical": (ONE, ONE, ONE),
    "zero": (ONE * 0, ONE * 0, ONE * 0),
    "one zero": (ONE, ONE * 0, ONE),
    "parallel": (ONE, 2 * ONE, 3 * ONE),
    "antiparallel": (ONE, -ONE, ONE),
    "right angles": (ONE * tensor([1], [0]), RIGHT, ONE * tensor([0], [1])),
    "one row is the same": (ONE, ONE * tensor([1], [2]), ONE * tensor([1], [-1])),
    "one element": (tensor([3]), tensor([-1]), tensor([2])),
    "one column": (tensor([3], [1], [-4]), tensor([-1], [2], [5]), tensor([2], [2], [2])),
    "a vector": (ONE[0], ONE[1], RIGHT[0]),
    "a vector of one": (tensor(3), tensor(-1), tensor(2)),
    "no dimension": (torch.tensor(3.0), torch.tensor(-1.0), torch.tensor(2.0)),
    "empty": (torch.empty(0, 3),) * 3,
    "empty rows": (torch.empty(3, 0),) * 3,
    "four dimensions": (ONE.view(2, 1, 2, 2), RIGHT.view(2, 1, 2, 2), -ONE.view(2, 1, 2, 2)),
    "subnormal": (ONE * 1e-44, RIGHT * 1e-43, -ONE * 1e-45),
    "tiny": (ONE * 1e-30, RIGHT * 1e-30, ONE * -3e-30),
    "huge": (ONE * 3e37, RIGHT * 1e37, ONE * -1e37),
    "tiny rows beside huge ones": (ONE * tensor([1e-19], [1e19]), RIGHT * tensor([1e-19], [1e19]), ONE),
}
# Where an oracle's own rule is a quotient of roundings: scores of a few equal elements, divergences of shifted rows.
LOOSE = ("pcb", "arcee_fusion", "widen", "della", "della_linear")


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("case", CASES)
def test_odd_tensors(case, kind):
    """No error, no NaN, the same shape and, where there are angles, what the oracle says."""
    models, given, _ = CASES[case]
    tensors = [ODD[kind][i % 3].clone() for i in range(models)]
    for base in [torch.zeros_like(tensors[0]), torch.ones_like(tensors[0])] if given else [None]:
        if base is not None and base.any():
            tensors = [t + base for t in tensors]
        got = merged(case, tensors, base)
        assert (got.shape, got.dtype) == (tensors[0].shape, torch.float32)
        assert got.isfinite().all() or kind == "huge"
        if method_of(case) not in LOOSE and got.numel():
            assert_accurate(got, expected(case, tensors, base), share=oracles.SPHERICAL)


@pytest.mark.parametrize("case", CASES)
def test_backends_agree_on_them(case):
    models, given, parameters = CASES[case]
    made = []
    for kind in ODD.values():
        tensors = [kind[i % 3].clone() for i in range(models)]
        made.append((method_of(case), tensors, torch.ones_like(tensors[0]) / 3 if given else None))
    options = drawing(case) | parameters
    wanted = run(reference(), *(task(*m, **options) for m in made))
    got = run(cpu(threads=2, tile=512), *(task(*m, **options) for m in made))
    for kind, one, other in zip(ODD, got, wanted, strict=True):
        assert_same_bits(one, other, kind)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_a_frozen_tensor_keeps_its_bits(case, dtype):
    """Also -0, subnormals, large weights, one row or element; and NaN, as in a mask."""
    models = CASES[case][0]
    values = torch.tensor([[-0.0, 0.0, 0.1], [-6e-8, 3.0, 1e-45], [90.0, -1e4, -7.7]], dtype=torch.float64)
    nan = torch.tensor([[float("nan"), -float("inf")], [-0.0, 1.0]])
    for frozen in (values, values * 0, values.flatten(), nan, values[:1], values[:, :1], values[0, 0], values[:0]):
        frozen = frozen.to(DTYPES[dtype])
        assert_same_bits(merged(case, [frozen.clone() for _ in range(models)], frozen.clone()), frozen)


@pytest.mark.parametrize("case", [c for c in CASES if CASES[c][1] and not c.endswith(("-paper", "-dense"))])
def test_no_lambda_is_the_base(case):
    if "lambda" in find(method_of(case)).by_name:
        base, tensors = family("bf16", CASES[case][0], (5, 7))
        base[0, 0] = -0.0
        assert_same_bits(merged(case, tensors, base, lambda_=0.0), base)


@pytest.mark.parametrize("case", CASES)
def test_nan_and_infinity(case):
    models, given, _ = CASES[case]
    base, tensors = family("fp32", models, (7, 9))
    tensors[0][2, 3], tensors[0][5, 1] = float("nan"), float("inf")
    with pytest.raises(CheckpointError, match="2 of 63"):
        merged(case, tensors, base)
    there = torch.ones(7, 9, dtype=torch.bool)
    there[2, 3] = there[5, 1] = False
    assert merged(case, tensors, base, nonfinite="propagate")[there].isfinite().all()
    if not given:
        with pytest.raises(UsageError, match="no base"):
            merged(case, tensors, base, nonfinite="base")
        return
    repaired = [torch.where(t.isfinite(), t, base) for t in tensors]
    got = merged(case, tensors, base, nonfinite="base")
    assert_same_bits(got, merged(case, repaired, base))


@pytest.mark.parametrize(
    "case", ["arcee_fusion", "pcb", "widen", "nuslerp-rows", "nuslerp-columns", "model_stock-rows"]
)
def test_nan_spoils_its_element_only(case):
    base, tensors = family("fp32", CASES[case][0], (7, 9))
    tensors[0][2, 3] = float("nan")
    got = merged(case, tensors, base, nonfinite="propagate")
    assert got[2, 3].isnan() and int(got.isnan().sum()) == 1


@pytest.mark.parametrize("count", [1, 7, 4096, 4097, 100003])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_changes_that_are_all_the_same_do_not_stand_out(dtype, count):
    """Whatever their mean is rounded to."""
    for value in (0.7, 0.1, -1 / 3, 3e-5, 1e-30):
        change = torch.full((count,), value, dtype=dtype)
        got = wm.merge_tensors([change, change], "widen", base=torch.zeros_like(change))
        torch.testing.assert_close(got, change, rtol=1e-6, atol=0)  # a half of each


# --- what is refused, and recipes -------------------------------------------------------------------------------------

REFUSED = [
    ("della", 2, {"weight": 1, "density": 0.1}, r"density 0\.1 with epsilon 0\.15 .* set epsilon below 0\.1"),
    ("della", 2, {"weight": 1, "density": 0.85}, r"from 0\.7 to 1, .* set epsilon below 0\.15"),
    ("della_linear", 2, {"weight": 1, "density": [0.5, 0.8], "epsilon": [0.3, 0.25]}, "set epsilon below 0.2"),
    ("della", 2, {"weight": 1, "density": 0.5, "epsilon": -0.1}, "'epsilon': expected a number >= 0"),
    ("della", 2, {"weight": 1, "density": 1.5}, r"number in \[0, 1\]"),
    ("della", 2, {"weight": [1, -1], "density": 0.5}, "negative weight"),
    ("della", 2, {"weight": 1, "rescale": "inverse_density"}, "l1, inverse_probability, false"),
    ("della", 2, {"density": 0.5}, "needs the parameter 'weight'"),
    ("arcee_fusion", 2, {}, "exactly 1 model besides the base, got 2"),
    ("arcee_fusion", 1, {"t": 0.5}, "no parameter 't'"),
    ("della", 193, {"weight": 1}, "1-192 models besides the base, got 193"),
    ("della_linear", 289, {"weight": 1}, "1-288 models besides the base, got 289"),
    ("pcb", 37, {}, "1-36 models besides the base, got 37"),
    ("pcb", 2, {"ratio": 1.1}, r"'ratio': expected a number in \[0, 1\]"),
    ("widen", 2, {"ratio": -1}, "'ratio': expected a number >= 0"),
]


@pytest.mark.parametrize(("method", "models", "parameters", "message"), REFUSED)
def test_what_is_refused(method, models, parameters, message):
    with pytest.raises(UsageError, match=message):
        wm.merge_tensors([ONE] * models, method, base=ONE, **parameters)


LONGEST = [
    ("pcb", 36, {"ratio": 1.0, "nonfinite": "propagate"}),
    ("della", 192, {"weight": 1.0, "density": 0.5, "elect": "unweighted", "normalize": True}),
    ("della", 192, {"weight": 1.0, "density": 0.5, "rescale": "inverse_probability", "elect": "unweighted"}),
    ("della_linear", 288, {"weight": 1.0, "density": 0.5}),
    ("della_linear", 288, {"weight": 1.0, "density": 0.5, "rescale": "inverse_probability"}),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("method", "models", "parameters"), LONGEST)
def test_as_many_models_as_make_a_formula(method, models, parameters, dtype):
    tensors = list(torch.randn(models, 3, 50, generator=torch.Generator().manual_seed(0), dtype=dtype))
    got = wm.merge_tensors(tensors, method, base=torch.zeros(3, 50, dtype=dtype), **parameters)
    assert got.isfinite().all() and got.any()


@pytest.mark.parametrize("method", ["della", "arcee_fusion", "pcb", "widen"])
def test_a_base_is_needed(method):
    with pytest.raises(UsageError, match="needs a base"):
        wm.merge_tensors([ONE], method, **({"weight": 1} if method == "della" else {}))


@pytest.fixture
def models(tmp_path):
    for seed, name in enumerate(("base", "a", "b")):
        write_model(tmp_path / name, llama(seed))
    return tmp_path


def from_files(folder, method, listed, **parameters):
    models = [str(folder / m) for m in listed]
    document = {"merge_method": method, "models": models, "base_model": str(folder / "base"), "parameters": parameters}
    wm.merge(document, folder / "out", overwrite=True, sync=False)
    return {name: torch.from_numpy(array(raw).copy()) for name, raw in read_model(folder / "out").items()}


RECIPES = {
    "arcee_fusion": ("base", "a"),  # as mergekit's recipes have it, with both models listed
    "della": ("a", "b"),
    "della_linear": ("a", "b"),
    "pcb": ("b", "a"),
    "widen": ("a", "b"),
    "nuslerp": ("a", "b"),
    "model_stock": ("a", "b"),
}
OPTIONS = {
    "della": {"weight": 0.5, "density": 0.6},
    "della_linear": {"weight": 0.5, "density": 0.4},
    "nuslerp": {"weight": 1, "nuslerp_flatten": False},
    "model_stock": {"filter_wise": True},
}


@pytest.mark.parametrize("method", RECIPES)
def test_files_merge_as_tensors_do(method, models):
    listed = RECIPES[method]
    options = OPTIONS.get(method, {})
    merged_files = from_files(models, method, listed, **options)
    tensors = {m: {n: torch.from_numpy(v) for n, v in llama(seed).items()} for seed, m in enumerate(("base", "a", "b"))}
    for name, got in merged_files.items():
        inputs = [tensors[m][name] for m in listed if m != "base"]
        alone = wm.merge_tensors(inputs, method, base=tensors["base"][name], name=name, **options)
        assert_same_bits(got, alone)
    assert any(not torch.equal(merged_files[n], tensors["base"][n]) for n in merged_files)
