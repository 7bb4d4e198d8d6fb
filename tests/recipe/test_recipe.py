"""Recipes: what is refused and in which words, and what may be written in more than one way."""

from collections import Counter

import numpy as np
import pytest
import torch
from helpers import write_recipe
from hypothesis import given, settings
from hypothesis import strategies as st
from recipe_helpers import resolved
from warpmerge.api import load
from warpmerge.errors import UsageError
from warpmerge.methods import REGISTRY, Parameter
from warpmerge.recipe import Layers, ModelRef, Recipe

TIES = "merge_method: ties\nbase_model: /m/base\nmodels: [{model: /m/a}, {model: /m/b}]\n"
LINEAR = "merge_method: linear\nmodels: [{model: /m/a}, {model: /m/b}]\n"
SLICE = "merge_method: linear\nslices: [{sources: [{model: "
SLERP = "merge_method: slerp\nbase_model: /m/a\nmodels: [{model: /m/a}, {model: /m/b}]\n"

# Each: the YAML, and what the message must contain.
BAD = {
    "empty": ("", ["mapping", "merge_method"]),
    "a list": ("- a\n- b\n", ["mapping"]),
    "a word": ("ties", ["mapping"]),
    "two documents": (f"{LINEAR}---\n{LINEAR}", ["document 1 and document 2", "used by no other document"]),
    "unclosed bracket": ("merge_method: linear\nmodels: [a, b\n", ["line 3", "not valid YAML"]),
    "tab": ("merge_method: linear\nmodels:\n\t- model: a\n", ["line 3", "not valid YAML"]),
    "NUL": ("merge_method: linear\nmodels: [a\0]\n", ["line 2", "not valid YAML"]),
    "impossible date": ("merge_method: !!timestamp 2001-99-99\n", ["not valid YAML", "timestamp"]),
    "undefined alias": ("merge_method: *x\n", ["line 1", "alias"]),
    "deep": ("a: " + "[" * 5000 + "]" * 5000, ["nested too deeply"]),
    "list as key": ("? [a, b]\n: 1\n", ["line 1", "unhashable"]),
    "duplicate key": (f"{LINEAR}models: [{{model: /m/c}}]\n", ["line 3", "'models'", "twice"]),
    "duplicate inner key": (f"{LINEAR}parameters:\n  weight: 1\n  weight: 2\n", ["line 5", "'weight'", "twice"]),
    "models and slices": (f"{LINEAR}slices: [{{sources: []}}]\n", ["'models' and 'slices'", "not both"]),
    "slices is a mapping": ("merge_method: linear\nslices: {sources: []}\n", ["'slices' must be a list", "'sources'"]),
    "slices is empty": ("merge_method: linear\nslices: []\n", ["'slices' must be a list of at least one slice"]),
    "slice without sources": ("merge_method: linear\nslices: [{layer_range: [0, 1]}]\n", ["slices[0]", "'sources'"]),
    "source without range": (f"{SLICE}a}}]}}]\n", ["slices[0]: sources[0] (a)", "layer_range", "None"]),
    "range of one number": (f"{SLICE}a, layer_range: [3]}}]}}]\n", ["layer_range", "[first, end]", "[3]"]),
    "range of fractions": (f"{SLICE}a, layer_range: [0, 2.5]}}]}}]\n", ["layer_range", "[0, 2.5]"]),
    "range backwards": (f"{SLICE}a, layer_range: [3, 1]}}]}}]\n", ["layer_range", "[3, 1]"]),
    "range below 0": (f"{SLICE}a, layer_range: [-1, 1]}}]}}]\n", ["layer_range", "[-1, 1]"]),
    "ranges of two lengths": (
        f"{SLICE}a, layer_range: [0, 2]}}, {{model: b, layer_range: [0, 3]}}]}}]\n",
        ["slices[0]", "one length", "[0, 2], [0, 3]"],
    ),
    "model twice in a slice": (
        f"{SLICE}a, layer_range: [0, 2]}}, {{model: a, layer_range: [2, 4]}}]}}]\n",
        ["slices[0]", "'a' is listed twice"],
    ),
    "slice without its base": (
        "merge_method: ties\nbase_model: c\nslices: [{sources: [{model: a, layer_range: [0, 2]}]}]\n",
        ["'c' must be one of the sources"],
    ),
    "two modules": ("merge_method: linear\nmodules: {a: {models: [x]}, b: {models: [x]}}\n", ["modules", "2 of them"]),
    "misspelt key": (f"{LINEAR}base_modl: /m/a\n", ["'base_modl'", "did you mean 'base_model'"]),
    "number as key": (f"{LINEAR}1: x\n", ["the key 1 is no text"]),
    "no method": ("models: [{model: /m/a}]\n", ["'merge_method' is missing"]),
    "misspelt method": (LINEAR.replace("linear", "linaer"), ["'linaer'", "did you mean 'linear'"]),
    "method is a list": (LINEAR.replace("linear", "[linear]"), ["merge_method", "['linear']"]),
    "method is null": (LINEAR.replace("linear", "null"), ["'merge_method' is missing"]),
    "no models": ("merge_method: linear\n", ["'models' must be a list"]),
    "models is empty": ("merge_method: linear\nmodels: []\n", ["'models' must be a list of at least one"]),
    "models is a dict": ("merge_method: linear\nmodels: {model: /m/a}\n", ["'models' must be a list", "'/m/a'"]),
    "model is a number": ("merge_method: linear\nmodels: [{model: 7}]\n", ["models[0]", "path", "7"]),
    "model is null": ("merge_method: linear\nmodels: [{model: null}]\n", ["models[0]", "None"]),
    "model is empty": ('merge_method: linear\nmodels: [{model: ""}]\n', ["models[0]", "''"]),
    "entry is a list": ("merge_method: linear\nmodels: [[a]]\n", ["models[0]", "'model'"]),
    "entry without model": ("merge_method: linear\nmodels: [{path: a}]\n", ["models[0]", "'model'"]),
    "entry's unknown key": ("merge_method: linear\nmodels: [{model: a, wait: 1}]\n", ["unknown key 'wait'"]),
    "entry's misspelt key": ("merge_method: linear\nmodels: [{model: a, parmeters: {}}]\n", ["mean 'parameters'"]),
    "two adapters": ("merge_method: linear\nmodels: [{model: a+b+c}]\n", ["'a+b+c'", "one adapter"]),
    "no adapter": ("merge_method: linear\nmodels: [{model: a+}]\n", ["'a+'", "one adapter"]),
    "adapter of none": ("merge_method: linear\nmodels: [{model: +b}]\n", ["'+b'", "one adapter"]),
    "adapters twice": ("merge_method: linear\nmodels: [{model: {model: a+b, lora: c}}]\n", ["one adapter"]),
    "adapter's key": ("merge_method: linear\nmodels: [{model: {model: a, lora: {p: c}}}]\n", ["lora: unknown key 'p'"]),
    "architecture": (
        "merge_method: linear\nmodels: [{model: {model: a, override_architecture: X}}]\n",
        ["'override_architecture'", "not supported"],
    ),
    "model reference's key": ("merge_method: linear\nmodels: [{model: {path: a, rev: b}}]\n", ["unknown key 'rev'"]),
    "revision": ("merge_method: linear\nmodels: [{model: {path: a, revision: 1}}]\n", ["'revision'", "quote"]),
    "twice": (LINEAR.replace("/m/b", "/m/a"), ["/m/a", "listed twice"]),
    "no base": (TIES.replace("base_model: /m/base\n", ""), ["'ties'", "needs a 'base_model'"]),
    "base is empty": (TIES.replace("/m/base", '""'), ["base_model", "''"]),
    "base is false": (TIES.replace("/m/base", "false"), ["base_model", "False"]),
    "only the base": (TIES.replace("{model: /m/a}, {model: /m/b}", "/m/base"), ["at least 1", "got 0"]),
    "slerp of three": (SLERP.replace("{model: /m/b}", "/m/b, /m/c"), ["'slerp'", "exactly 2", "got 3"]),
    "slerp of one": (SLERP.replace(", {model: /m/b}", ""), ["'slerp'", "exactly 2", "got 1"]),
    "slerp, base outside": (SLERP.replace("base_model: /m/a", "base_model: /m/c"), ["got 3", "counts as one"]),
    "parameters is a list": (f"{LINEAR}parameters: [weight]\n", ["parameters", "mapping"]),
    "parameters is a word": (f"{LINEAR}parameters: weight\n", ["parameters", "mapping"]),
    "misspelt parameter": (f"{TIES}parameters: {{densty: 1}}\n", ["'ties'", "'densty'", "mean 'density'"]),
    "number as parameter": (f"{TIES}parameters: {{1: 1}}\n", ["the key 1 is no text"]),
    "weight is a word": (f"{TIES}parameters: {{weight: heavy}}\n", ["'weight'", "number", "'heavy'"]),
    "weight is half a number": (f"{TIES}parameters: {{weight: '0.5x'}}\n", ["'weight'", "number", "'0.5x'"]),
    "weight is a boolean": (f"{TIES}parameters: {{weight: true}}\n", ["'weight'", "number", "True"]),
    "weight is null": (f"{TIES}parameters: {{weight: null}}\n", ["'weight'", "number", "None"]),
    "weight is nan": (f"{TIES}parameters: {{weight: .nan}}\n", ["'weight'", "finite"]),
    "weight is infinite": (f"{TIES}parameters: {{weight: -.inf}}\n", ["'weight'", "finite"]),
    "weight overflows": (f"{TIES}parameters: {{weight: 1{'0' * 400}}}\n", ["'weight'"]),
    "weight of 5000 digits": (f"{TIES}parameters: {{weight: {'9' * 5000}}}\n", ["not valid YAML", "digits"]),
    "density above 1": (f"{TIES}parameters: {{density: 1.5}}\n", ["'density'", "[0, 1]", "1.5"]),
    "density below 0": (f"{TIES}parameters: {{density: -0.1}}\n", ["'density'", "[0, 1]", "-0.1"]),
    "density in a gradient": (f"{TIES}parameters: {{density: [0.5, 2]}}\n", ["'density'", "[0, 1]", "2"]),
    "density in a filter": (
        f"{TIES}parameters: {{density: [{{filter: mlp, value: [0, 7]}}]}}\n",
        ["'density'", "[0, 1]", "7"],
    ),
    "boolean is a word": (f"{TIES}parameters: {{normalize: maybe}}\n", ["'normalize'", "true or false", "'maybe'"]),
    "misspelt choice": (f"{TIES}parameters: {{nonfinite: eror}}\n", ["'nonfinite'", "mean 'error'"]),
    "empty gradient": (f"{TIES}parameters: {{weight: []}}\n", ["'weight'", "empty list"]),
    "null in a gradient": (
        "merge_method: passthrough\nmodels: [a]\nparameters: {scale: [1, null]}",
        ["'scale'", "null"],
    ),
    "gradient in a gradient": (f"{TIES}parameters: {{weight: [1, [2, 3]]}}\n", ["'weight'", "number"]),
    "filter without value": (f"{TIES}parameters: {{weight: {{filter: mlp}}}}\n", ["'weight'", "needs a 'value'"]),
    "misspelt filter": (f"{TIES}parameters: {{weight: [{{fliter: a, value: 1}}]}}\n", ["'fliter'", "mean 'filter'"]),
    "filter is a number": (f"{TIES}parameters: {{weight: [{{filter: 3, value: 1}}]}}\n", ["filter", "name", "3"]),
    "filter in a filter": (
        f"{TIES}parameters: {{weight: [{{filter: a, value: [{{filter: b, value: 1}}]}}]}}\n",
        ["'weight'", "number"],
    ),
    "filter contains itself": (
        f"{TIES}parameters: {{weight: &x [{{filter: a, value: *x}}]}}\n",
        ["line 4", "contains itself"],
    ),
    "unknown dtype": (f"{LINEAR}dtype: bfloat61\n", ["dtype", "mean 'bfloat16'"]),
    "integer dtype": (f"{LINEAR}out_dtype: int8\n", ["out_dtype", "'int8'", "float32"]),
    "dtype is empty": (f'{LINEAR}dtype: ""\n', ["dtype", "''"]),
    "dtype is a list": (f"{LINEAR}dtype: [float32]\n", ["dtype", "['float32']"]),
}
# Ten lists, each of ten times the one before: 10^10 elements, if anything spells them out.
BOMB = "[&a0 [x]" + "".join(f", &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 11)) + "]"


@pytest.mark.parametrize("name", BAD)
def test_bad_recipes(tmp_path, name):
    text, expected = BAD[name]
    path = write_recipe(tmp_path / "r.yml", text)
    with pytest.raises(UsageError) as caught:
        Recipe.load(path)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400 + len(str(path))
    for part in [str(path), *expected]:
        assert part in message


@pytest.mark.parametrize(
    "line",
    ["merge_method: {}", "dtype: {}", "base_model: {}", "models: {}", "parameters: {}", "parameters: {{weight: {}}}"],
)
def test_values_that_would_be_huge_are_not_spelt_out(tmp_path, line):
    key = line.split(":")[0]
    where = f"line {len(TIES.splitlines()) + (key not in TIES)}"
    others = [other for other in TIES.splitlines() if not other.startswith(key)]
    with pytest.raises(UsageError, match=f"{where}, .*: more than 1,000,000 values") as caught:
        Recipe.load(write_recipe(tmp_path / "r.yml", "\n".join([*others, line.format(BOMB)])))
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(("content", "reason"), [(None, "No such file"), (b"\xff\xfe\x00", "not a text file")])
def test_recipe_that_cannot_be_read(tmp_path, content, reason):
    path = tmp_path / "r.yml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=reason):
        Recipe.load(path)


@pytest.mark.parametrize("source", [tuple(), 7, None])
def test_recipe_of_a_wrong_type(source):
    with pytest.raises(UsageError, match="a recipe must be a path, a dictionary or a Recipe"):
        Recipe.load(source)
    with pytest.raises(UsageError, match="not a regular file"):
        Recipe.load("/")


def test_dictionaries_take_what_python_callers_have(tmp_path):
    """Paths, numpy numbers and arrays, tuples, torch dtypes; and the recipe can be written down again."""
    recipe = Recipe.load(
        {
            "merge_method": "ties",
            "base_model": tmp_path / "base",
            "models": ({"model": tmp_path / "a", "parameters": {"weight": np.float64(0.5)}}, str(tmp_path / "b")),
            "parameters": {"weight": np.float32(0.25), "density": np.array([0.5, 1.0]), "lambda": np.int64(2)},
            "dtype": torch.float32,
            "out_dtype": np.float16,
        }
    )
    assert recipe.dtype.name == "float32" and recipe.out_dtype.name == "float16"
    values = resolved(recipe, Layers(["layers.0.w", "layers.2.w"]), "layers.1.w")
    assert values["weight"] == (0.5, 0.25) and values["density"] == (0.75, 0.75) and values["lambda"] == 2
    again = Recipe.load(write_recipe(tmp_path / "again.yml", recipe.to_yaml()))
    assert again.to_yaml() == recipe.to_yaml()
    endless = {}
    endless["models"] = endless
    with pytest.raises(UsageError, match="contains itself"):
        Recipe.load(endless)


def test_spellings_of_one_directory_are_one_model(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to("a")
    monkeypatch.chdir(tmp_path)
    assert len({ModelRef(p) for p in ["a", "./a", "a/", "link", str(tmp_path / "a")]}) == 1
    assert ModelRef("b") != ModelRef("./b")  # neither exists: the first may be on the hub
    recipe = Recipe.load({"merge_method": "ties", "base_model": "a", "models": ["./a/", "/m/b"]})
    assert [str(m.ref) for m in recipe.slices[0].inputs] == ["/m/b"]


def test_long_form_of_models_revisions_and_odd_paths(tmp_path):
    def refs(*models):
        recipe = Recipe.load({"merge_method": "linear", "models": list(models)})
        return [(m.path, m.revision) for m in recipe.models]

    assert refs("org/m@v1", {"model": {"model": {"path": "org/m", "revision": "v2"}, "lora": None}}) == [
        ("org/m", "v1"),
        ("org/m", "v2"),
    ]
    odd = tmp_path / "a+b@c d-é"
    odd.mkdir()
    assert refs(str(odd)) == [(str(odd), None)]


def test_adapters_of_models(tmp_path):
    def ref(model):
        [found] = Recipe.load({"merge_method": "passthrough", "models": [{"model": model}]}).models
        adapter = found.adapter
        return found.path, found.revision, adapter and adapter.path, adapter and adapter.revision

    assert ref("org/m@v1+org/a@v2") == ("org/m", "v1", "org/a", "v2")
    assert ref("org/m+org/a") == ("org/m", None, "org/a", None)
    assert ref({"model": {"path": "org/m", "revision": "1"}, "lora": {"path": "b", "revision": "2"}}) == (
        *("org/m", "1"),
        *("b", "2"),
    )
    assert ref({"model": "org/m", "lora": "b@2"}) == ("org/m", None, "b", "2")
    assert ref({"model": "org/m@v+a", "lora": None}) == ("org/m", "v", "a", None)
    (tmp_path / "c++").mkdir()
    (tmp_path / "c++/a+b").mkdir()
    assert ref(f"{tmp_path}/c+++{tmp_path}/c++/a+b") == (f"{tmp_path}/c++", None, f"{tmp_path}/c++/a+b", None)
    assert ref(f"{tmp_path}/c++") == (f"{tmp_path}/c++", None, None, None)
    assert str(ModelRef("m", "1", ModelRef("a", "2"))) == "m@1+a@2"
    recipe = Recipe.load({"merge_method": "linear", "models": ["m+a", "m+b", "m"], "parameters": {"weight": 1}})
    assert len(set(recipe.models)) == 3


def test_yaml_features_that_recipes_use(tmp_path):
    """Exponents without a dot (a string in YAML 1.1), anchors and merge keys, a byte order mark."""
    text = """\ufeffmerge_method: task_arithmetic
base_model: /m/base
models:
  - {model: /m/a, parameters: &p {weight: 1e-5}}
  - {model: /m/b, parameters: {<<: *p}}
  - {model: /m/c, parameters: {<<: *p, weight: 2E+1}}
slices: null
"""
    recipe = Recipe.load(write_recipe(tmp_path / "r.yml", text))
    assert resolved(recipe, Layers([]), "w")["weight"] == (1e-5, 1e-5, 20.0)


NO = Parameter("none", str, "nothing")
NAMES = sorted({p.name for m in REGISTRY.values() for p in m.parameters})
WORDS = st.sampled_from(["filter", "value", "model", "*", "l1", "error", "true", "", *NAMES])
LEAVES = WORDS | st.integers() | st.floats() | st.booleans() | st.none() | st.dates()
VALUES = st.recursive(LEAVES, lambda v: st.lists(v, max_size=3) | st.dictionaries(WORDS, v, max_size=2), max_leaves=6)
NUMBERS = st.floats(0, 1) | st.lists(st.floats(0, 1), min_size=1, max_size=3)
SETTINGS = NUMBERS | st.fixed_dictionaries({"value": NUMBERS}, optional={"filter": WORDS})
PARAMETERS = st.dictionaries(st.sampled_from(NAMES), SETTINGS | st.lists(SETTINGS, max_size=3) | VALUES, max_size=3)


def test_whatever_parameters_hold_is_refused_or_means_the_same_when_written_down(tmp_path):
    path, layers = tmp_path / "r.yml", Layers(["layers.0.a", "layers.3.b"])
    seen = Counter()

    @settings(max_examples=400, deadline=None, database=None, derandomize=True)
    @given(st.sampled_from(sorted(REGISTRY)), PARAMETERS, PARAMETERS)
    def check(method, shared, own):
        known = REGISTRY[method].by_name
        document = {
            "merge_method": method,
            "base_model": "/m/a",
            "models": [{"model": "/m/b", "parameters": {k: v for k, v in own.items() if known.get(k, NO).per_model}}],
            "parameters": {"weight": 1.0, "t": 0.5} | shared,
        }
        document["parameters"] = {k: v for k, v in document["parameters"].items() if k in known}
        for source in (document, write_recipe(path, document)):
            try:
                recipe = Recipe.load(source)
                values = resolved(recipe, layers, "layers.1.a")
            except UsageError as error:
                assert len(str(error)) < 400 + len(str(path))
                seen["refused"] += 1
                continue
            assert resolved(Recipe.load(write_recipe(path, recipe.to_yaml())), layers, "layers.1.a") == values
            seen["read"] += 1

    check()
    assert seen["refused"] > 50 and seen["read"] > 50


NOTICES = {
    "parameter of another method": (
        f"{LINEAR}parameters: {{int8_mask: true, weight: 1}}\n",
        "'int8_mask' has no effect",
    ),
    "parameter at the top": (f"{LINEAR}weight: 1\n", "'weight' has no effect here"),
    "parameter beside a model": ("merge_method: linear\nmodels: [{model: /m/a, t: 1}]\n", "'t' has no effect here"),
    "parameter of all models": (
        "merge_method: linear\nmodels: [{model: /m/a, parameters: {normalize: true}}]\n",
        "'normalize' has no effect here: it has one value for all models",
    ),
    "range of a whole model": (
        "merge_method: linear\nmodels: [{model: /m/a, layer_range: [0, 2]}]\n",
        "'layer_range' has no effect under 'models'",
    ),
    "residual weight": (
        f"{SLICE}a, layer_range: [0, 2]}}], residual_weight: 0.5}}]\n",
        "'residual_weight' has no effect",
    ),
}


@pytest.mark.parametrize("name", NOTICES)
def test_what_has_no_effect_is_said(tmp_path, name):
    text, expected = NOTICES[name]
    path = write_recipe(tmp_path / "r.yml", text)
    [notice] = Recipe.load(path).notices
    assert notice.startswith(f"{path}: ") and expected in notice
    with pytest.raises(UsageError) as strict:
        load(path, strict=True)
    assert str(strict.value) == notice
    assert load(path).notices == (notice,)


def test_all_faults_are_reported_at_once(tmp_path):
    text = f"{TIES}dtype: bfloat61\nparameters: {{densty: 1, weight: heavy}}\nbase_modl: x\nchat_template: chtml\n"
    path = write_recipe(tmp_path / "r.yml", text)
    with pytest.raises(UsageError) as caught:
        Recipe.load(path)
    lines = str(caught.value).split("\n")
    assert len(lines) == 5 and all(line.startswith(str(path)) for line in lines)
    for word in ("base_modl", "chtml", "bfloat61", "densty", "heavy"):
        assert sum(word in line for line in lines) == 1


def test_numbers_may_be_text(tmp_path):
    recipe = Recipe.load(
        {
            "merge_method": "ties",
            "base_model": "b",
            "models": ["a"],
            "parameters": {"weight": ["0.5", "1e-1"], "density": "5e-1"},
        }
    )
    assert recipe.slices[0].scopes[0]["weight"].values == (0.5, 0.1)
    assert recipe.slices[0].scopes[0]["density"].value == 0.5
