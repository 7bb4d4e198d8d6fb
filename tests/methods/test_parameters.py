"""Which value of a parameter holds for which tensor and model: gradients over the layers, filters, precedence."""

import pytest
from recipe_helpers import resolved
from warpmerge.errors import UsageError
from warpmerge.recipe import Layers, Recipe


def resolve(recipe, name="model.layers.0.w", layers=("model.layers.0.w",)):
    return resolved(recipe, Layers(layers), name)


def values_of(setting, names, *, parameter="weight", layers=None):
    """The value of one global setting of ties for each tensor."""
    document = {"merge_method": "ties", "base_model": "/m/base", "models": ["/m/a"]}
    document["parameters"] = {"weight": 1.0, parameter: setting}
    recipe, layers = Recipe.load(document), Layers(layers or names)
    values = [resolved(recipe, layers, name)[parameter] for name in names]
    return [v[0] if isinstance(v, tuple) else v for v in values]


INF = float("inf")
FIVE = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(5)]


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ([0, 1], [0, 0.25, 0.5, 0.75, 1]),
        ([0, 1, 0.5], [0, 0.5, 1, 0.75, 0.5]),
        ([0.5], [0.5] * 5),
        ([0, 1, 2, 3, 4, 5], [0, 1.25, 2.5, 3.75, 5]),
        ({"value": [0, 1]}, [0, 0.25, 0.5, 0.75, 1]),
        ([{"filter": "mlp", "value": [0, 4]}, {"value": 9}], [0, 1, 2, 3, 4]),
        ([{"filter": "attn", "value": [0, 4]}, 9], [9] * 5),
    ],
)
def test_gradients(setting, expected):
    assert values_of(setting, FIVE) == pytest.approx(expected, abs=1e-15)


def test_gradients_of_what_cannot_be_interpolated_step():
    assert values_of([True, False], FIVE, parameter="normalize") == [True] * 4 + [False]
    assert values_of(["error", "base"], FIVE, parameter="nonfinite") == ["error"] * 4 + ["base"]
    assert values_of([True, False, True], FIVE, parameter="normalize") == [True, True, False, False, True]


@pytest.mark.parametrize(
    "stack", ["model.layers.{}.w", "h.{}.w", "transformer.h.{}.w", "blocks.{}.w", "encoder.layer.{}.w", "d.block.{}"]
)
def test_layers_are_found_under_every_name(stack):
    names = [stack.format(i) for i in range(3)]
    assert values_of([0, 1], names) == [0, 0.5, 1]


def test_place_of_tensors_on_the_layer_axis():
    """Outside of layers the first value, in a stack of one the last; each stack has an axis; experts are no layers."""
    names = [
        "embed.w",
        "norm.w",
        "enc.layers.0.w",
        "enc.layers.4.w",
        "dec.layers.0.w",
        "one.layers.0.w",
        "sublayers.3.w",
    ]
    assert values_of([1, 3], names) == [1, 1, 1, 3, 3, 3, 1]
    inner = "model.layers.1.mlp.experts.7.w"
    assert values_of([0, 1], [inner], layers=[inner, "model.layers.2.w"]) == [0.5]
    assert Layers([f"layers.{'9' * 5000}.w"]).t(f"layers.{'9' * 5000}.w") == 0


def test_precedence_and_filters():
    """A model's own value wins; the first filter that is part of the name wins; no match asks the next source."""
    recipe = Recipe.load(
        {
            "merge_method": "ties",
            "base_model": "/m/base",
            "models": [
                {"model": "/m/a", "parameters": {"weight": 2, "density": {"filter": "mlp", "value": 0.25}}},
                {"model": "/m/base"},
                {
                    "model": "/m/b",
                    "parameters": {
                        "weight": [{"filter": "q_proj", "value": 3}, {"filter": "attn", "value": 4}],
                        "density": [{"filter": "*", "value": 0.75}, {"filter": "mlp", "value": 0}],
                    },
                },
            ],
            "parameters": {"weight": [{"filter": "mlp", "value": 5}, {"value": 6}], "density": {"value": 0.5}},
        }
    )
    expected = {
        "attn.q_proj": ((2, 3), (0.5, 0.75)),
        "attn.k_proj": ((2, 4), (0.5, 0.75)),
        "mlp.up": ((2, 5), (0.25, 0.75)),
        "norm": ((2, 6), (0.5, 0.75)),
    }
    for name, (weight, density) in expected.items():
        values = resolve(recipe, name)
        assert (values["weight"], values["density"]) == (weight, density)


def test_limits_of_numbers():
    """Products with weights stay in float32; a clip, which no product takes, may be infinite, in gradients too."""
    values = values_of([-1e30, 1e30], FIVE, parameter="lambda")
    assert values[0] == -1e30 and values[-1] == 1e30
    for wrong in (1.1e30, [0, -1.1e30], {"filter": "mlp", "value": 10**40}):
        with pytest.raises(UsageError, match=r"'lambda': expected a number of at most 1e\+30 in magnitude"):
            values_of(wrong, FIVE, parameter="lambda")
    document = {"merge_method": "norm_clipped_mean", "base_model": "/m/base", "models": ["/m/a"]}
    for setting, expected in (
        ("inf", [INF] * 3),
        (INF, [INF] * 3),
        ([1, INF], [1, INF, INF]),
        ([INF, 1], [INF, INF, 1]),
    ):
        recipe = Recipe.load({**document, "parameters": {"clip": setting}})
        assert [resolved(recipe, Layers(FIVE[:3]), name)["clip"] for name in FIVE[:3]] == expected


@pytest.mark.parametrize("parameter", ["weight", "lambda", "nonfinite", "elect"])
def test_recipes_refuse_null(parameter):
    with pytest.raises(UsageError, match=f"'{parameter}': expected .* None"):
        values_of(None, FIVE, parameter=parameter)


def test_required_parameters_name_the_model_and_the_tensor():
    with pytest.raises(UsageError, match=r"'linear' needs the parameter 'weight' for the model '/m/b'"):
        resolve(Recipe.load({"merge_method": "linear", "models": [entry("/m/a", 1), "/m/b"]}))
    slerp = {"merge_method": "slerp", "base_model": "/m/a", "models": ["/m/a", "/m/b"]}
    with pytest.raises(UsageError, match=r"'slerp' needs the parameter 't'\."):
        resolve(Recipe.load(slerp))
    with pytest.raises(UsageError, match=r"'t' \(tensor 'norm.w'\)"):
        resolve(Recipe.load({**slerp, "parameters": {"t": {"filter": "mlp", "value": 0.5}}}), "norm.w")


def entry(model, weight):
    return {"model": model, "parameters": {"weight": weight}}
