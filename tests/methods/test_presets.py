"""`semantics`: named sets of options. Each equals its options to the last bit, and what is given wins."""

import json

import numpy as np
import pytest
import torch
import warpmerge as wm
from helpers import contents, read_model, run_cli, write_recipe, write_ties
from kernel_helpers import assert_same_bits, family
from recipe_helpers import resolved
from warpmerge.methods import REGISTRY, find
from warpmerge.recipe import Layers, Recipe

# What each preset stands for, said once more, by hand.
PRESETS = {
    ("linear", "paper"): {"weight": 1},
    ("task_arithmetic", "paper"): {"weight": 1},
    ("ties", "paper"): {
        **{"weight": 1, "elect": "unweighted", "divisor": "count"},
        **{"ties": "keep_all", "cancelled": "majority", "scope": "model"},
    },
    ("ties", "peft"): {"elect": "unweighted", "divisor": "count"},
    ("dare_linear", "paper"): {"weight": 1, "rescale": "inverse_density"},
    ("dare_linear", "peft"): {"rescale": "inverse_density"},
    ("dare_ties", "paper"): {"weight": 1, "rescale": "inverse_density", "elect": "unweighted", "divisor": "count"},
    ("dare_ties", "peft"): {"rescale": "inverse_density", "elect": "unweighted", "divisor": "count"},
    ("breadcrumbs", "paper"): {"weight": 1},
    ("della", "paper"): {"rescale": "inverse_probability"},
    ("della_linear", "paper"): {"rescale": "inverse_probability"},
    ("sce", "authors"): {"sce_mask_merge": False},
    ("ramplus_tl", "authors"): {"r": 0.05, "alpha": 1, "scope": "model"},
}
IN_MERGEKIT = {
    *("linear", "task_arithmetic", "ties", "dare_linear", "dare_ties", "slerp", "nuslerp", "multislerp", "karcher"),
    *("model_stock", "passthrough", "breadcrumbs", "breadcrumbs_ties", "sce", "nearswap", "ram", "ramplus_tl"),
    *("della", "della_linear", "arcee_fusion"),
}
IDS = ["-".join(key) for key in PRESETS]
WEIGHT = [0.9, 0.3, 0.4]
# With their defaults there would be nothing for an option to change.
SPARSE = {"density": [0.3, 0.5, 0.7], "select_topk": 0.4, "epsilon": 4e-6}


def weight(method, options=()):
    """Weights for a method that takes them, unless `options` have them."""
    return {"weight": WEIGHT} if "weight" in find(method).by_name and "weight" not in options else {}


def test_which_presets_there_are():
    listed = {(m.name, preset): sets for m in wm.list_methods() for preset, sets in m.presets.items() if m.built_in}
    assert {name for name, preset in listed if preset == "mergekit"} == IN_MERGEKIT
    assert all(
        listed[name, "mergekit"] == {} and find(name).by_name["semantics"].default == "mergekit" for name in IN_MERGEKIT
    )
    assert {key: sets for key, sets in listed.items() if key[1] != "mergekit"} == PRESETS


def merged(method, **options):
    """bf16 models whose deltas have many equal magnitudes, merged."""
    base, models = family("bf16", 3, (41, 53))
    base, models = base * 0.02, [base * 0.02 + m * 2e-4 for m in models]
    with_base = find(method).base is wm.Base.REFERENCE
    options = {name: value for name, value in SPARSE.items() if name in find(method).by_name} | options
    return wm.merge_tensors(models, method, base=base if with_base else None, out_dtype="float32", name="w", **options)


@pytest.mark.parametrize(("method", "semantics"), PRESETS, ids=IDS)
def test_a_preset_is_its_options(method, semantics):
    options = PRESETS[method, semantics]
    given = weight(method, options)
    got = merged(method, semantics=semantics, **given)
    assert_same_bits(got, merged(method, **given, **options))
    if set(options) - {"weight"}:
        others = given or ({"weight": 1} if "weight" in options else {})
        assert not torch.equal(got, merged(method, **others))  # the options change something


FEW_OR_NO_OPTIONS = {"slerp", "passthrough", "nuslerp", "karcher", "model_stock", "nearswap", "arcee_fusion"}


@pytest.mark.parametrize("method", sorted(IN_MERGEKIT - FEW_OR_NO_OPTIONS))
def test_mergekit_is_the_default(method):
    options = weight(method)
    assert_same_bits(merged(method, semantics="mergekit", **options), merged(method, **options))


@pytest.mark.parametrize(("method", "semantics"), PRESETS, ids=IDS)
def test_what_is_given_wins(method, semantics):
    options = PRESETS[method, semantics]
    others = {
        "weight": WEIGHT,
        "elect": "weighted",
        "divisor": "none",
        "rescale": "l1",
        "ties": "lowest_index",
        "cancelled": "plus",
        "scope": "tensor",
        "sce_mask_merge": True,
        "r": 0.1,
        "alpha": 0.2,
    }
    for name in options:
        rest = weight(method) | {k: v for k, v in options.items() if k != name} | {name: others[name]}
        given = {name: others[name]} | weight(method, options)
        if "weight" in options and name != "weight":
            rest["weight"] = 1
        assert_same_bits(merged(method, semantics=semantics, **given), merged(method, **rest))


@pytest.mark.parametrize(("normalize", "divisor"), [(True, "weights"), (False, "none")])
@pytest.mark.parametrize("method", ["ties", "dare_ties"])
def test_normalize_wins_over_a_presets_divisor(method, normalize, divisor):
    options = {k: v for k, v in PRESETS[method, "peft"].items() if k != "divisor"} | {"weight": WEIGHT}
    got = merged(method, semantics="peft", normalize=normalize, weight=WEIGHT)
    assert_same_bits(got, merged(method, **options, divisor=divisor))
    again = merged(method, semantics="peft", normalize=normalize, divisor="count", weight=WEIGHT)
    assert_same_bits(again, merged(method, **options, divisor="count"))


def test_none_is_as_if_not_given():
    assert_same_bits(merged("ties", semantics="paper", divisor=None), merged("ties", semantics="paper"))
    assert_same_bits(merged("ties", semantics=None, weight=1), merged("ties", weight=1))


@pytest.mark.parametrize(
    ("method", "semantics", "part"),
    [
        ("ties", "papr", r"'semantics': expected one of mergekit, paper, peft, got 'papr'; did you mean 'paper'\?"),
        ("ties", 1, r"'semantics': expected one of mergekit, paper, peft, got 1"),
        ("linear", "peft", r"'linear': 'semantics': expected one of mergekit, paper, got 'peft'"),
        ("slerp", "paper", r"'slerp': 'semantics': expected one of mergekit, got 'paper'"),
        ("krum", "paper", r"method 'krum' has no parameter 'semantics'"),
    ],
)
def test_presets_that_a_method_lacks(method, semantics, part):
    x = [np.full(3, i) for i in (1.0, 2.0, 3.0)]
    with pytest.raises(wm.UsageError, match=part):
        wm.merge_tensors(x[1:] if method == "slerp" else x, method, base=x[1], semantics=semantics)
    document = {"merge_method": method, "base_model": "/m/a", "models": ["/m/b", "/m/c", "/m/d"]}
    part = part.removeprefix("'linear': ").removeprefix("'slerp': ")
    with pytest.raises(wm.UsageError, match=f"recipe: parameters: .*{part}"):
        Recipe.load({**document, "parameters": {"semantics": semantics}})


# --- recipes ----------------------------------------------------------------------------------------------------------


def values(parameters, own=None, name="model.layers.0.mlp.w"):
    models = ["/m/a", {"model": "/m/b", "parameters": own or {}}]
    document = {"merge_method": "ties", "base_model": "/m/base", "models": models, "parameters": parameters}
    return resolved(Recipe.load(document), Layers(["model.layers.0.mlp.w", "model.layers.1.mlp.w"]), name)


def test_a_models_own_values_win_over_a_preset():
    found = values({"semantics": "paper"}, {"weight": 3, "density": 0.5})
    assert (found["weight"], found["density"]) == ((1.0, 3.0), (1.0, 0.5))
    assert (found["elect"], found["divisor"], found["ties"]) == ("unweighted", "count", "keep_all")


def test_filters_and_gradients_beside_a_preset():
    """Where a filter does not match, the preset is asked before the default."""
    parameters = {
        "semantics": "paper",
        "elect": {"filter": "attn", "value": "weighted"},
        "weight": {"filter": "mlp", "value": [0, 2]},
    }
    assert (values(parameters)["elect"], values(parameters)["weight"]) == ("unweighted", (0.0, 0.0))
    last = values(parameters, name="model.layers.1.mlp.w")
    assert last["weight"] == (2.0, 2.0)
    other = values(parameters, name="model.layers.0.attn.w")
    assert (other["elect"], other["weight"], other["divisor"]) == ("weighted", (1.0, 1.0), "count")
    by_name = {"semantics": [{"filter": "mlp", "value": "peft"}, {"value": "paper"}], "weight": 2}
    assert values(by_name)["ties"] == "lowest_index" and values(by_name, name="norm")["ties"] == "keep_all"
    short = {"semantics": "peft", "weight": 2, "normalize": {"filter": "attn", "value": False}}
    assert values(short)["divisor"] == "count" and values(short, name="attn")["divisor"] is None
    with pytest.raises(wm.UsageError, match="needs the parameter 'weight' for the model '/m/a'"):
        values({"semantics": "peft"})


@pytest.fixture
def models(tmp_path):
    return write_ties(tmp_path)


def recipe(folder, **parameters):
    document = {
        "merge_method": "ties",
        "base_model": str(folder / "base"),
        "models": [str(folder / "a"), str(folder / "b")],
        "parameters": {"density": 0.5, "weight": 0.5} | parameters,
    }
    return write_recipe(folder / "r.yml", document)


def merge(folder, out, *options):
    done = run_cli("merge", folder / "r.yml", folder / out, "--no-sync", "--shard-size", "600", "--json", *options)
    assert (done.status, done.stderr) == (0, "")
    return json.loads(done.stdout)


@pytest.mark.parametrize("semantics", ["mergekit", "paper", "peft"])
def test_files_merge_as_the_options_do(models, semantics):
    recipe(models, semantics=semantics)
    merge(models, "preset")
    recipe(models, **{k: v for k, v in REGISTRY["ties"].presets[semantics].items() if k != "weight"})
    merge(models, "options")
    assert read_model(models / "preset") == read_model(models / "options")
    manifest = json.loads((models / "preset" / "warpmerge.json").read_text())
    assert manifest["recipe"]["parameters"]["semantics"] == semantics
    assert f"semantics: {semantics}" in (models / "preset" / "README.md").read_text()


def test_resuming_notices_another_preset(models, monkeypatch):
    """Shards of an interrupted merge are kept if the recipe is the same, and made again if its preset changed."""
    from warpmerge.models.output import OutputDirectory

    def interrupt(out):
        with monkeypatch.context() as patch:
            patch.setattr(OutputDirectory, "publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            stopped = run_cli("merge", models / "r.yml", models / out, "--no-sync", "--shard-size", "600")
            assert stopped.status == 130

    recipe(models, semantics="paper")
    merge(models, "paper")
    recipe(models, semantics="peft")
    merge(models, "peft")
    assert contents(models / "paper") != contents(models / "peft")
    interrupt("kept")
    assert merge(models, "kept", "--resume")["resumed_shards"] > 0
    interrupt("changed")
    recipe(models, semantics="paper")
    assert merge(models, "changed", "--resume")["resumed_shards"] == 0
    assert read_model(models / "changed") == read_model(models / "paper")
