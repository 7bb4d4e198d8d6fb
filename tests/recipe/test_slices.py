"""Slices: which layers of which models become which layers of the output, with which values.

The models are small Llamas whose elements say where they come from: 100 for a model, 1 for a layer.
"""

import json

import numpy as np
import pytest
import warpmerge as wm
import yaml
from helpers import array, read_model, run_cli, write_model

OUTSIDE = {"model.embed_tokens.weight": 50, "model.norm.weight": 60, "lm_head.weight": 70}
PARTS = ["input_layernorm.weight", "mlp.up_proj.weight", "self_attn.q_proj.weight"]


def elements(value):
    return np.full((2, 3), value, np.float32)


def model(folder, number, layers=4, **config):
    """Layer i has 100 x number + i, embeddings 100 x number + 50 and so on."""
    tensors = {name: elements(100 * number + at) for name, at in OUTSIDE.items()}
    for i in range(layers):
        tensors |= {f"model.layers.{i}.{part}": elements(100 * number + i) for part in PARTS}
    files = {"config.json": json.dumps({"model_type": "llama", "num_hidden_layers": layers} | config)}
    return str(write_model(folder / f"m{number}", tensors, shards=2, files=files))


@pytest.fixture
def models(tmp_path):
    return [model(tmp_path, number) for number in (1, 2, 3)]


def merged(tmp_path, recipe, **options):
    """The value of each layer, and of the tensors outside: embeddings, norm, head."""
    wm.merge(recipe, tmp_path / "out", sync=False, **options)
    found = {}
    for name, stored in read_model(tmp_path / "out").items():
        values = np.unique(array(stored))
        assert len(values) == 1, name
        found[name] = round(float(values[0]), 4)
    layers = [n for n in range(100) if f"model.layers.{n}.{PARTS[0]}" in found]
    assert found.keys() == {*OUTSIDE, *(f"model.layers.{n}.{part}" for n in layers for part in PARTS)}
    return [found[f"model.layers.{n}.{PARTS[1]}"] for n in layers], [found[name] for name in OUTSIDE]


def source(path, first, end, **parameters):
    return {"model": path, "layer_range": [first, end]} | ({"parameters": parameters} if parameters else {})


def config(tmp_path):
    return json.loads((tmp_path / "out" / "config.json").read_text())


def test_a_stack(tmp_path, models):
    a, b, _ = models
    slices = [{"sources": [source(a, 0, 3)]}, {"sources": [source(b, 1, 4)]}]
    layers, outside = merged(tmp_path, {"merge_method": "passthrough", "slices": slices})
    assert layers == [100, 101, 102, 201, 202, 203]
    assert outside == [150, 260, 270]
    assert config(tmp_path)["num_hidden_layers"] == 6


def test_layers_may_repeat_go_backwards_and_be_none(tmp_path, models):
    a = models[0]
    ranges = [(2, 4), (3, 3), (0, 2), (1, 2)]
    recipe = {"merge_method": "passthrough", "slices": [{"sources": [source(a, *r)]} for r in ranges]}
    assert merged(tmp_path, recipe)[0] == [102, 103, 100, 101, 101]


def test_numbers_may_be_text(tmp_path, models):
    recipe = {"merge_method": "passthrough", "slices": [{"sources": [source(models[0], "0", 2.0)]}]}
    assert merged(tmp_path, recipe)[0] == [100, 101]


def test_a_stack_of_one_model_is_its_bytes(tmp_path, models):
    """In each model's own dtype."""
    recipe = {"merge_method": "passthrough", "slices": [{"sources": [source(models[0], 0, 4)]}]}
    wm.merge(recipe, tmp_path / "out", sync=False)
    ours, theirs = read_model(tmp_path / "out"), read_model(tmp_path / "m1")
    assert ours == theirs


def test_one_slice_over_whole_models_is_a_list_of_models(tmp_path, models):
    a, b, _ = models
    head = {"merge_method": "slerp", "base_model": a, "parameters": {"t": [0, 0.5, 0.3, 0.7, 1]}}
    wm.merge({**head, "models": [a, b]}, tmp_path / "models", sync=False)
    wm.merge({**head, "slices": [{"sources": [source(a, 0, 4), source(b, 0, 4)]}]}, tmp_path / "slices", sync=False)
    wm.merge({**head, "modules": {"default": {"models": [a, b]}}}, tmp_path / "modules", sync=False)
    one, *others = (read_model(tmp_path / name) for name in ("models", "slices", "modules"))
    for other in others:
        assert one == other


@pytest.mark.parametrize(
    ("slices", "layers", "outside"),
    [
        ([(0, 4, [0, 1])], [0, 1 / 3, 2 / 3, 1], [0, 0, 0]),
        ([(0, 3, [0.25, 1]), (3, 4, [0.25, 2])], [0.25, 0.625, 1, 2], [0.25, 0.25, 0.25]),
        ([(0, 1, [0, 1])], [1], [0, 0, 0]),
        ([(0, 2, [7]), (2, 4, [0, 0.5, 1])], [7, 7, 0, 1], [7, 0, 0]),
    ],
)
def test_the_place_on_the_layer_axis(tmp_path, slices, layers, outside):
    """It begins anew in each slice. What is outside of layers is at the beginning of the first or last one."""
    tensors = {name: elements(1) for name in OUTSIDE}
    tensors |= {f"model.layers.{i}.{part}": elements(1) for i in range(4) for part in PARTS}
    path = str(write_model(tmp_path / "ones", tensors))
    found = [{"sources": [source(path, a, b)], "parameters": {"scale": value}} for a, b, value in slices]
    result = merged(tmp_path, {"merge_method": "passthrough", "slices": found, "dtype": "float32"})
    assert result[0] == pytest.approx(layers, abs=1e-4) and result[1] == outside


def test_sources_with_other_layers_are_merged(tmp_path, models):
    a, b, c = models
    slices = [
        {"sources": [source(a, 0, 2), source(b, 2, 4)]},
        {"sources": [source(a, 0, 1), source(b, 0, 1), source(c, 3, 4)]},
    ]
    recipe = {"merge_method": "linear", "slices": slices, "parameters": {"weight": 1}}
    layers, outside = merged(tmp_path, recipe)
    assert layers == [151, 152, 201]
    assert outside == [200, 260, 270]


def test_a_base_for_each_slice(tmp_path, models):
    """slerp at t = 0.25 from the base; parallel tensors are interpolated linearly."""
    a, b, _ = models
    slices = [
        {"sources": [source(a, 0, 2), source(b, 0, 2)], "base_model": b},
        {"sources": [source(a, 2, 4), source(b, 2, 4)]},
    ]
    recipe = {"merge_method": "slerp", "base_model": a, "slices": slices, "parameters": {"t": 0.25}}
    layers, outside = merged(tmp_path, recipe)
    assert layers == [175, 176, 127, 128]
    assert outside == [225, 185, 195]


def test_task_vectors_of_slices(tmp_path, models):
    base, b, c = models
    slices = [
        {"sources": [source(base, 0, 2), source(b, 0, 2), source(c, 2, 4)]},
        {"sources": [source(b, 3, 4), source(base, 3, 4)]},
    ]
    recipe = {"merge_method": "task_arithmetic", "base_model": base, "slices": slices, "parameters": {"weight": 0.5}}
    layers, outside = merged(tmp_path, recipe)
    assert layers == [100 + 50 + 101, 101 + 50 + 101, 103 + 50]
    assert outside == [150 + 50 + 100, 160 + 50, 170 + 50]


def test_the_nearest_value_holds(tmp_path, models):
    """That of the source, of the slice, of the module, of the recipe."""
    a, b, c = models
    slices = [
        {"sources": [source(a, 0, 1, weight=8), source(b, 0, 1)], "parameters": {"weight": 4}},
        {"sources": [source(b, 0, 1)]},
        {"sources": [source(c, 0, 1, weight=[{"filter": "nothing", "value": 9}])]},
    ]
    top = {"weight": 1, "normalize": False}
    recipe = {"merge_method": "linear", "slices": slices, "parameters": top}
    assert merged(tmp_path, recipe)[0] == [8 * 100 + 4 * 200, 200, 300]
    recipe = {
        "merge_method": "linear",
        "modules": {"default": {"slices": slices, "parameters": {"weight": 2}}},
        "parameters": top,
    }
    assert merged(tmp_path, recipe, overwrite=True)[0] == [8 * 100 + 4 * 200, 400, 600]


def test_filters_of_a_source_test_the_names_that_it_has(tmp_path, models):
    a, b, _ = models
    weights = [{"filter": "layers.2.", "value": 3}, 1]
    slices = [{"sources": [source(a, 2, 4, weight=weights), source(b, 0, 2, weight=weights)]}]
    recipe = {"merge_method": "linear", "slices": slices, "parameters": {"normalize": False}}
    assert merged(tmp_path, recipe)[0] == [3 * 102 + 200, 103 + 201]
    # Values for all models go by the names of the output.
    slices = [{"sources": [source(a, 2, 4), source(b, 0, 2)]}]
    t = [{"filter": "layers.1.", "value": 1}, 0]
    recipe = {"merge_method": "slerp", "base_model": a, "slices": slices, "parameters": {"t": t}}
    assert merged(tmp_path, recipe, overwrite=True)[0] == [102, 201]


def test_random_draws_go_by_the_output(tmp_path, models):
    """A layer that comes twice is drawn twice; the same recipe gives the same bits."""
    a, b, _ = models
    pair = {"sources": [source(a, 0, 1), source(b, 0, 1)]}
    recipe = {
        "merge_method": "dare_linear",
        "base_model": a,
        "slices": [pair, pair],
        "parameters": {"weight": 1, "density": 0.5},
    }
    for name in ("one", "two"):
        wm.merge(recipe, tmp_path / name, sync=False)
    one, two = read_model(tmp_path / "one"), read_model(tmp_path / "two")
    assert one == two
    layers = [np.concatenate([array(one[f"model.layers.{n}.{part}"]).ravel() for part in PARTS]) for n in (0, 1)]
    assert not np.array_equal(*layers)


def test_dtypes(tmp_path, models):
    """Each layer keeps its own, unless one is asked for."""
    recipe = {"merge_method": "passthrough", "slices": [{"sources": [source(models[0], 0, 2)]}], "dtype": "bfloat16"}
    wm.merge(recipe, tmp_path / "out", sync=False)
    assert config(tmp_path)["torch_dtype"] == "bfloat16"


def test_what_a_config_says_of_each_layer(tmp_path):
    kinds = ["full", "sliding", "full", "sliding"]
    a = model(
        tmp_path, 1, layer_types=kinds, max_window_layers=3, mlp_only_layers=[0, 3], other=[1, 2], rope=[1, 2, 3, 4]
    )
    b = model(tmp_path, 2, layers=5, layer_types=["other"] * 5)
    slices = [{"sources": [source(a, 2, 4)]}, {"sources": [source(a, 0, 3)]}, {"sources": [source(b, 4, 5)]}]
    merged(tmp_path, {"merge_method": "passthrough", "slices": slices})
    found = config(tmp_path)
    assert found["num_hidden_layers"] == 6
    assert found["layer_types"] == ["full", "sliding", "full", "sliding", "full", "other"]
    assert found["rope"] == [3, 4, 1, 2, 3, 4]
    assert found["other"] == [1, 2]
    assert found["mlp_only_layers"] == [1, 2]
    assert found["max_window_layers"] == 4


def test_the_config_of_a_part(tmp_path):
    """As in models of text and images."""
    inner = {"num_hidden_layers": 4, "layer_types": ["x", "y", "z", "w"]}
    a = model(tmp_path, 1, text_config=inner, vision_config={"depth": 4, "kinds": [1, 2, 3, 4]})
    merged(tmp_path, {"merge_method": "passthrough", "slices": [{"sources": [source(a, 1, 3)]}]})
    assert config(tmp_path)["text_config"] == {"num_hidden_layers": 2, "layer_types": ["y", "z"]}
    assert config(tmp_path)["vision_config"] == {"depth": 4, "kinds": [1, 2, 3, 4]}


def bad(tmp_path, models, edit):
    recipe = {"merge_method": "passthrough", "slices": [{"sources": [source(models[0], 0, 2)]}]}
    edit(recipe)
    with pytest.raises(wm.MergeError) as caught:
        wm.merge(recipe, tmp_path / "bad", sync=False)
    assert not (tmp_path / "bad").exists()
    return str(caught.value)


def test_layers_that_there_are_not(tmp_path, models):
    message = bad(tmp_path, models, lambda r: r["slices"].append({"sources": [source(models[1], 2, 6)]}))
    assert message == f"slices[1]: the layer_range [2, 6] goes beyond the 4 layers of model '{models[1]}'."


def test_layers_of_other_architectures(tmp_path, models):
    tensors = {name: elements(1) for name in OUTSIDE} | {f"model.layers.{i}.mlp.weight": elements(1) for i in range(4)}
    other = str(write_model(tmp_path / "other", tensors))
    recipe = {"merge_method": "linear", "parameters": {"weight": 1}}

    def edit(r):
        r |= recipe
        r["slices"] = [{"sources": [source(models[0], 0, 2), source(other, 0, 2)]}]

    assert "lacks a tensor 'model.layers.*." in bad(tmp_path, models, edit)


def test_two_stacks_of_layers(tmp_path, models):
    tensors = {f"{stack}.layers.{i}.w": elements(1) for stack in ("encoder", "decoder") for i in range(2)}
    other = str(write_model(tmp_path / "t5", tensors))
    message = bad(tmp_path, models, lambda r: r.update(slices=[{"sources": [source(other, 0, 1)]}]))
    assert "slices need a model with one stack of layers" in message and "'decoder.layers.*'" in message


def test_a_plan_of_slices(tmp_path, models):
    """It counts what is read, and shows each model once."""
    slices = [{"sources": [source(models[0], 0, 3)]}, {"sources": [source(models[1], 1, 4)]}]
    (tmp_path / "r.yml").write_text(yaml.safe_dump({"merge_method": "passthrough", "slices": slices, "name": "stack"}))
    done = run_cli("plan", tmp_path / "r.yml", "--json")
    assert (done.status, done.stderr) == (0, "")
    plan = json.loads(done.stdout)
    assert plan["bytes_read"] == (6 * len(PARTS) + 3) * 24
    assert [m["role"] for m in plan["models"]] == ["input", "input"]
