"""The methods of examples/methods: short, and they compute what they say, however they are called."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
import warpmerge as wm
from helpers import array, read_model, run_process, write_model, write_recipe
from warpmerge.methods import REGISTRY

FOLDER = Path(__file__).parent.parent / "examples" / "methods"
LINES = {"agreement": 30, "trim_mean": 30, "shrink_spectrum": 40}
SHAPES = {"matrix": (24, 16), "vector": (40,), "empty": (0, 4)}


@pytest.fixture(autouse=True)
def registered():
    """Registers the methods of the examples, and forgets them."""
    before = dict(REGISTRY)
    for name in LINES:
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    yield
    REGISTRY.clear()
    REGISTRY.update(before)


def model(seed):
    """The base for seed 0, else a fine-tune of it."""
    base, tuned = np.random.default_rng(0), np.random.default_rng(seed)
    return {
        name: (base.normal(size=shape) + (seed > 0) * 0.1 * tuned.normal(size=shape)).astype(np.float32)
        for name, shape in SHAPES.items()
    }


BASE, *MODELS = map(model, range(4))


def agreement(deltas, weight, strength):
    terms = [w * d for w, d in zip(weight, deltas, strict=True)]
    agreed = np.abs(sum(terms)) / sum(np.abs(t) for t in terms)
    return sum(terms) / sum(weight) * (1 - strength * (1 - agreed))


def trim_mean(deltas, density, lambda_):
    mean = sum(deltas) / len(deltas)
    kept = np.argsort(-np.abs(mean), axis=None, kind="stable")[: int(np.ceil(density * mean.size))]
    trimmed = np.zeros_like(mean)
    trimmed.flat[kept] = mean.flat[kept]
    return lambda_ * trimmed


def shrink_spectrum(deltas, weight, share, keep_norm):
    whole = sum(w * torch.from_numpy(d) for w, d in zip(weight, deltas, strict=True))
    if whole.ndim != 2 or not whole.numel():
        return whole.numpy()
    u, s, vt = torch.linalg.svd(whole, full_matrices=False)
    left = torch.relu(s - share * s[0])
    shrunk = u @ torch.diag(left) @ vt
    return (shrunk * (whole.norm() / shrunk.norm() if keep_norm else 1)).numpy()


CASES = [
    (agreement, {"weight": [1.0, 0.5, 2.0], "strength": 1.0}),
    (agreement, {"weight": [1.0, 1.0, 1.0], "strength": 0.0}),
    (trim_mean, {"density": 0.3, "lambda_": 0.7}),
    (trim_mean, {"density": 0.0, "lambda_": 1.0}),
    (shrink_spectrum, {"weight": [1.0, -0.5, 0.3], "share": 0.2, "keep_norm": True}),
    (shrink_spectrum, {"weight": [1.0, 1.0, 1.0], "share": 0.5, "keep_norm": False}),
]
cases = pytest.mark.parametrize(("oracle", "options"), CASES)
ONE_EACH = pytest.mark.parametrize(("oracle", "options"), CASES[::2])


def expected(oracle, options, name):
    deltas = [m[name].astype(np.float64) - BASE[name] for m in MODELS]
    return BASE[name] + oracle(deltas, **options)


def test_every_method_is_tested():
    assert {path.stem for path in FOLDER.glob("*.py")} == LINES.keys()
    assert {oracle.__name__ for oracle, _ in CASES} == LINES.keys()


@pytest.mark.parametrize("name", LINES)
def test_a_method_is_short_and_described(name):
    text = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
    assert text.startswith('"""') and len(text.splitlines()) <= LINES[name]
    assert REGISTRY[name].summary and all(p.help for p in REGISTRY[name].parameters)


@pytest.mark.parametrize("name", SHAPES)
@cases
def test_tensors(oracle, options, name):
    method, tensors = oracle.__name__, [m[name] for m in MODELS]
    merged = wm.merge_tensors(tensors, method, base=BASE[name], **options)
    np.testing.assert_allclose(merged, expected(oracle, options, name), rtol=1e-5, atol=1e-6)
    of_torch = wm.merge_tensors(
        list(map(torch.from_numpy, tensors)), method, base=torch.from_numpy(BASE[name]), **options
    )
    assert np.array_equal(of_torch.numpy(), merged)


@ONE_EACH
def test_state_dicts(oracle, options):
    merged = wm.merge_state_dicts(MODELS, oracle.__name__, base=BASE, **options)
    for name, tensor in merged.items():
        np.testing.assert_allclose(tensor, expected(oracle, options, name), rtol=1e-5, atol=1e-6)


@ONE_EACH
def test_a_recipe_merges_files(oracle, options, tmp_path):
    """In a process that has run the file, as a user's program does."""
    for name, tensors in zip(("base", "a", "b", "c"), (BASE, *MODELS), strict=True):
        write_model(tmp_path / name, tensors)
    parameters = {("lambda" if key == "lambda_" else key): value for key, value in options.items()}
    weight = parameters.pop("weight", [None] * 3)
    models = [
        {"model": name, "parameters": {"weight": w} if w is not None else {}}
        for name, w in zip("abc", weight, strict=True)
    ]
    method = oracle.__name__
    document = {"merge_method": method, "base_model": "base", "models": models, "parameters": parameters}
    recipe = write_recipe(tmp_path / "recipe.yml", document)
    setup = f"import runpy; runpy.run_path({str(FOLDER / f'{method}.py')!r})"
    done = run_process("merge", recipe, "merged", "--no-sync", setup=setup, cwd=tmp_path)
    assert (done.status, done.stderr) == (0, "")
    for name, raw in read_model(tmp_path / "merged").items():
        np.testing.assert_allclose(array(raw), expected(oracle, options, name), rtol=1e-5, atol=1e-6)


@ONE_EACH
def test_nan_stays_where_it_is(oracle, options):
    broken = MODELS[0]["matrix"].copy()
    broken[3, 4] = np.nan
    tensors = [broken, *(m["matrix"] for m in MODELS[1:])]
    merged = wm.merge_tensors(tensors, oracle.__name__, base=BASE["matrix"], nonfinite="propagate", **options)
    assert np.argwhere(np.isnan(merged)).tolist() == [[3, 4]]
    with pytest.raises(wm.CheckpointError, match="NaN"):
        wm.merge_tensors(tensors, oracle.__name__, base=BASE["matrix"], **options)


def test_values_that_make_no_sense():
    merge = wm.merge_tensors
    tensors, base = [m["matrix"] for m in MODELS], BASE["matrix"]
    with pytest.raises(wm.UsageError, match="every weight is 0"):
        merge(tensors, "shrink_spectrum", base=base, weight=0)
    with pytest.raises(wm.UsageError, match="share"):
        merge(tensors, "shrink_spectrum", base=base, share=1.0)
    with pytest.raises(wm.UsageError, match="density"):
        merge(tensors, "trim_mean", base=base)
    assert np.array_equal(merge(tensors, "agreement", base=base, weight=0), base)
