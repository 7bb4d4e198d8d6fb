"""Recipes that strangers wrote: nothing is executed, and none takes more time or memory than a recipe can need."""

import datetime
import json
import time

import numpy as np
import pytest
import warpmerge as wm
from helpers import llama, write_model, write_recipe
from warpmerge.errors import UsageError
from warpmerge.recipe import Recipe
from warpmerge.recipe.document import LIMIT, VALUES

pytestmark = pytest.mark.timeout(60)
HEAD = "merge_method: ties\nbase_model: /m/base\nmodels: [/m/a]\n"


def laughs(levels, each="[{}]"):
    """Lists of ten times the one before."""
    rows = "".join(f"  - &a{i} {each.format(', '.join([f'*a{i - 1}'] * 10))}\n" for i in range(1, levels))
    return f"{HEAD}parameters:\n  - &a0 {each.format('{}')}\n{rows}"


def merged(levels):
    """Mappings that merge ten of the one before."""
    rows = "".join(f"  - &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}], k{i}: 1}}\n" for i in range(1, levels))
    return f"{HEAD}parameters:\n  - &a0 {{k: 1}}\n{rows}"


# The marker is a file that would be made if anything were executed.
EXECUTED = [
    "!!python/object/apply:os.system ['touch {}']",
    "!!python/object/new:os.system ['touch {}']",
    "!!python/object/apply:subprocess.check_call [['touch', '{}']]",
    "!!python/object/apply:builtins.open ['{}', 'w']",
    "!!python/name:os.system",
    "!!python/module:os",
    "!!python/object:pathlib.Path {{}}",
    "!!python/tuple [1]",
    "!<tag:yaml.org,2002:python/object/apply:os.system> ['touch {}']",
    "!own x",
]


@pytest.mark.parametrize("value", EXECUTED)
def test_nothing_is_executed(tmp_path, value):
    marker = tmp_path / "executed"
    for key in ("dtype", "merge_method", "parameters", "base_model"):
        path = write_recipe(tmp_path / "r.yml", f"{key}: {value.format(marker)}\n")
        with pytest.raises(UsageError, match=r"r\.yml, line 1, .*the tag"):
            Recipe.load(path)
    assert not marker.exists()


BOMBS = {
    "laughs": (laughs(12), "more than 1,000,000 values"),
    "merged laughs": (merged(12), "more than 1,000,000 values"),
    "long laughs": (laughs(100_000, "[{}]"), "more than 1,000,000 values|nested too deeply"),
    "itself": (f"{HEAD}parameters: &a {{weight: *a}}\n", "contains itself"),
    "merges itself": (f"{HEAD}parameters: &a {{<<: *a}}\n", "contains itself"),
    "flow": (f"{HEAD}parameters: {'[' * 100_000}", "nested too deeply|not valid YAML"),
    "mappings": (f"{HEAD}parameters: {'{a: ' * 5000}", "nested too deeply|not valid YAML"),
    "dashes": (f"{HEAD}parameters:\n  {'- ' * 5000}x", "nested too deeply"),
    "keys": (f"{HEAD}parameters:\n  {'? ' * 5000}x", "nested too deeply"),
    "nodes": (f"parameters: [{'a,' * (VALUES // 100)}{'*b,' * 10}]\n", "undefined alias"),
    "sixties": (f"{HEAD}parameters: {{weight: 1{':01' * 1_000_000}}}\n", "digits"),
    "sixties with a point": (f"{HEAD}parameters: {{weight: 1{':01' * 400}.5}}\n", "digits"),
    "large sixties": (f"{HEAD}parameters: {{weight: 1{':01' * 300}.5}}\n", "not a value|finite|number"),
    "digits": (f"{HEAD}parameters: {{weight: {'9' * 5000}}}\n", "digits"),
    "hexadecimal digits": (f"{HEAD}parameters: {{weight: 0x{'f' * 5000}}}\n", "digits"),
    "binary digits": (f"{HEAD}parameters: {{weight: 0b{'1' * 1_000_000}}}\n", "digits"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_short_texts_that_stand_for_much(tmp_path, name):
    text, reason = BOMBS[name]
    started = time.perf_counter()
    with pytest.raises(UsageError, match=rf"r\.yml.*({reason})") as caught:
        Recipe.load(write_recipe(tmp_path / "r.yml", text))
    assert time.perf_counter() - started < 30
    assert len(str(caught.value)) < 600 + len(str(tmp_path))


def test_more_values_than_a_recipe_needs(tmp_path):
    path = tmp_path / "r.yml"
    path.write_text("x\n" * (LIMIT // 2 + 1))
    with pytest.raises(UsageError, match=r"r.yml: it has more than 16,777,216 bytes"):
        Recipe.load(path)


# Values of YAML that JSON does not have.
TYPES = {
    "timestamp": "!!timestamp 2001-01-01",
    "binary": "!!binary aGVsbG8=",
    "set": "!!set {a, b}",
    "omap": "!!omap [a: 1]",
    "pairs": "!!pairs [a: 1]",
    "no integer": "!!int x",
    "empty integer": "!!int ''",
    "empty float": "!!float ''",
    "no boolean": "!!bool x",
    "list as integer": "!!int [1]",
    "mapping as text": "!!str {=: x}",
    "mapping as list": "!!seq {a: b}",
    "list as mapping": "!!map [a]",
    "unhashable key": "{[a]: 1}",
    "mapping as key": "{{a: 1}: 1}",
    "integer as key": "{1: 1}",
    "null as key": "{~: 1}",
    "nan as key": "{.nan: 1}",
    "key twice": "{weight: 1, weight: 1}",
    "key twice, spelled apart": '{weight: 1, "we\\x69ght": 1}',
    "nan": "{weight: .nan}",
    "infinity": "{weight: .inf}",
    "control character": "{\x07: 1}",
    "character beyond Unicode": '{"\\Uffffffff": 1}',
}


@pytest.mark.parametrize("name", TYPES)
def test_values_that_no_recipe_has(tmp_path, name):
    path = tmp_path / "r.yml"
    path.write_text(f"{HEAD}parameters: {TYPES[name]}\n", encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        Recipe.load(path)
    assert str(caught.value).startswith(str(path)) and str(caught.value).isprintable()


def test_what_yaml_takes_for_a_date_is_text(tmp_path):
    recipe = Recipe.load(write_recipe(tmp_path / "r.yml", "merge_method: linear\nmodels: [2024-01-01, 2024-99-99]\n"))
    assert list(map(str, recipe.models)) == ["2024-01-01", "2024-99-99"]
    assert Recipe.load(write_recipe(tmp_path / "r.yml", recipe.to_yaml())).to_yaml() == recipe.to_yaml()


def shared(levels, times=10):
    """A list that holds one list so many times, which holds one list so many times, and so on."""
    value = ["x"]
    for _ in range(levels):
        value = [value] * times
    return value


class Text(str):
    """A string of a caller that says something else when it is asked again."""

    def __str__(self):
        return "other"


OBJECTS = {
    "laughs": shared(12),
    "deep": shared(90, times=1),
    "deeper": shared(100_000, times=1),
    "large integer": 10**5000,
    "large integer in a list": [1, -(10**5000)],
    "array": np.zeros((1100, 1000)),
    "integer as key": {1: 1},
    "text and integer as key": {"1": 1, 1: 2},
    "bytes as key": {b"weight": 1},
    "none as key": {None: 1},
    "date": datetime.date(2001, 1, 1),
    "bytes": b"x",
    "set": {1},
    "object": object(),
    "nan": float("nan"),
    "class": Text("weight"),
}


@pytest.mark.parametrize("key", ["parameters", "models", "dtype", "merge_method", "base_model"])
@pytest.mark.parametrize("name", OBJECTS)
def test_objects_of_python_callers(key, name):
    value = OBJECTS[name]
    document = {"merge_method": "ties", "base_model": "/m/base", "models": ["/m/a"], "parameters": {"weight": 1.0}}
    started = time.perf_counter()
    if (key, name) == ("base_model", "date"):
        assert str(Recipe.load(document | {key: value}).base) == "2001-01-01"
    elif key == "base_model" and name in ("bytes", "set", "object", "class"):
        assert isinstance(Recipe.load(document | {key: value}).source[key], str)
    else:
        with pytest.raises(UsageError) as caught:
            Recipe.load(document | {key: value})
        assert str(caught.value).startswith("recipe") and len(str(caught.value)) < 600
    assert time.perf_counter() - started < 30


def test_many_models_take_time_in_proportion_to_their_number():
    def seconds(count):
        models = [{"model": f"/m/{i}", "parameters": {"weight": 1.0}} for i in range(count)]
        started = time.process_time()
        recipe = Recipe.load({"merge_method": "linear", "models": models})
        assert len(recipe.slices[0].inputs) == count
        return time.process_time() - started

    seconds(100)
    assert seconds(40_000) < 40 * max(seconds(4_000), 0.05)


@pytest.mark.parametrize("seed", [2**64, -(2**64), 10**5000], ids=["65 bits", "negative", "5000 digits"])
def test_seeds_of_more_than_64_bits(tmp_path, seed):
    write_model(tmp_path / "a", llama(0))
    recipe = {"merge_method": "linear", "models": [str(tmp_path / "a")], "parameters": {"weight": 1}}
    with pytest.raises(UsageError, match="seed must be an integer of at most 64 bits"):
        wm.merge(recipe, tmp_path / "out", seed=seed)
    with pytest.raises(UsageError, match="shard_size"):
        wm.merge(recipe, tmp_path / "out", shard_size=abs(seed))


def test_infinity_in_a_recipe_is_valid_json_in_the_manifest(tmp_path):
    for name in "ab":
        write_model(tmp_path / name, llama(ord(name)))
    base, other = (str(tmp_path / name) for name in "ab")
    recipe = {"merge_method": "norm_clipped_mean", "base_model": base, "models": [other]}
    wm.merge(recipe | {"parameters": {"clip": float("inf")}}, tmp_path / "out", sync=False)

    def refuse(constant):
        raise ValueError(constant)

    recipe = json.loads((tmp_path / "out" / "warpmerge.json").read_text(), parse_constant=refuse)["recipe"]
    assert recipe["parameters"] == {"clip": "inf"}
    assert Recipe.load(recipe).slices[0].scopes[0]["clip"].value == float("inf")
