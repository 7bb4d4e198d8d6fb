"""Recipes with models under adapters give what they give with models that were merged beforehand."""

import json

import pytest
import torch
import warpmerge as wm
from adapter_helpers import LINEAR, change_config, llama, make_adapter, save, tensors_of
from helpers import write_recipe
from safetensors.torch import load_file
from warpmerge.plan.file_plan import make_plan
from warpmerge.recipe import Recipe


@pytest.fixture
def folder(tmp_path):
    """A model `m`, a fine-tune `n` of it, and adapters `a` and `b` of `m`."""
    model = llama(torch.bfloat16)
    save(model, tmp_path / "m")
    save(llama(torch.bfloat16, seed=5), tmp_path / "n")
    make_adapter(model, tmp_path / "a", target_modules=LINEAR, modules_to_save=["lm_head"])
    make_adapter(model, tmp_path / "b", seed=2, noise=0.05, use_dora=True)
    for adapter in "ab":
        wm.merge(
            {"merge_method": "passthrough", "models": [f"{tmp_path}/m+{tmp_path}/{adapter}"]},
            tmp_path / f"m_{adapter}",
            sync=False,
        )
    return tmp_path


def both(folder, recipe, **options):
    """The tensors of a recipe with adapters (`m+a`), and of the one with models that were merged beforehand (`m_a`)."""
    found = []
    for name, joint in (("as views", f"+{folder}/"), ("merged", "_")):
        text = recipe.replace("DIR", str(folder)).replace("&", joint)
        wm.merge(write_recipe(folder / "r.yml", text), folder / name, sync=False, **options)
        found.append(tensors_of(folder / name))
    return found


RECIPES = {
    "base": "{merge_method: sce, base_model: DIR/m&a, models: [DIR/m, DIR/n], parameters: {select_topk: 0.5}}",
    "several": "{merge_method: model_stock, base_model: DIR/m, models: [DIR/m&a, DIR/m&b, DIR/n]}",
    "passes": """{merge_method: ties, base_model: DIR/m, models: [DIR/m&a, DIR/m&b],
        parameters: {weight: 1, density: 0.4}}""",
    "ranks": "{merge_method: della, base_model: DIR/m, models: [DIR/m&b], parameters: {weight: 1, density: 0.5}}",
    "tensors": "{merge_method: iso_c, base_model: DIR/m, models: [DIR/m&a, DIR/m&b]}",
    "spherical": "{merge_method: slerp, base_model: DIR/m&b, models: [DIR/n], parameters: {t: 0.3}, dtype: float32}",
    "slices": """{merge_method: linear, dtype: float16, slices: [
        {sources: [{model: DIR/m&a, layer_range: [0, 2], parameters: {weight: 2}},
                   {model: DIR/m&b, layer_range: [0, 2], parameters: {weight: 1}}]},
        {sources: [{model: DIR/m&b, layer_range: [1, 2], parameters: {weight: 1}}]}]}""",
    "the base alone": """{merge_method: task_arithmetic, base_model: DIR/m&a, slices: [
        {sources: [{model: DIR/m&a, layer_range: [0, 2], parameters: {weight: 1}}]}]}""",
}


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_a_recipe_gives_what_it_gives_with_merged_models(folder, recipe, backend):
    views, merged = both(folder, RECIPES[recipe], backend=backend)
    assert views.keys() == merged.keys()
    assert all(torch.equal(views[name], merged[name]) for name in views)


@pytest.mark.parametrize("recipe", ["several", "passes", "slices"])
def test_gpus_stage_them(folder, recipe, monkeypatch):
    pytest.importorskip("warpmerge._cuda_emulated", reason="the emulated CUDA module is not built")
    monkeypatch.setenv("WARPMERGE_CUDA_EMULATION", "1")
    views, merged = both(folder, RECIPES[recipe], device="cuda")
    assert all(torch.equal(views[name], merged[name]) for name in views)


def test_plan_manifest_and_report_name_the_adapter(folder):
    recipe = {"merge_method": "passthrough", "models": [f"{folder}/m+{folder}/b"]}
    described = wm.api.describe(recipe, threads=2)
    [row] = described["models"]
    sizes = [(folder / name).stat().st_size for name in ("m/model.safetensors", "b/adapter_model.safetensors")]
    assert row["bytes"] == sum(sizes) + (folder / "b/adapter_config.json").stat().st_size
    report = wm.merge(recipe, folder / "out", threads=2)
    inputs = json.loads((folder / "out/warpmerge.json").read_text())["inputs"]
    assert [(i["path"], [f["name"] for f in i["files"]]) for i in inputs] == [
        (str(folder / "m"), ["model.safetensors"]),
        (str(folder / "b"), ["adapter_config.json", "adapter_model.safetensors"]),
    ]
    assert wm.verify(folder / "out").problems == ()
    without = wm.merge({**recipe, "models": [f"{folder}/m"]}, folder / "plain", threads=2)
    sizes = [4 * 8 * (24 + 32), 4 * 8 * (24 + 48)]  # of the factors of a layer in float64, R in steps of 16 columns
    lengths = 2 * 2 * 24 * 8
    assert report.memory - without.memory == 2 * sum(sizes) + 2 * max(sizes) + lengths


def test_what_a_pass_reads_is_counted(folder):
    plan = make_plan(Recipe.load({"merge_method": "passthrough", "models": [f"{folder}/m+{folder}/b"]}))
    weights = sum(plan.layout.sizes)
    twice = sum(
        size
        for name, size in zip(plan.jobs.names, plan.layout.sizes, strict=True)
        if "q_proj.w" in name or "down" in name
    )
    factors = load_file(folder / "b/adapter_model.safetensors")
    assert plan.read_bytes == weights + twice + sum(t.nbytes for t in factors.values())  # DoRA reads a weight twice
    plan.close()


def test_another_scale_is_another_merge(folder):
    recipe = Recipe.load({"merge_method": "passthrough", "models": [f"{folder}/m+{folder}/a"]})
    first = make_plan(recipe).fingerprint()
    assert make_plan(recipe).fingerprint() == first
    change_config(folder / "a", lora_alpha=12)
    assert make_plan(recipe).fingerprint() != first


@pytest.mark.parametrize("recipe", ["several", "slices", "base"])
def test_verify_merges_again(folder, recipe):
    wm.merge(
        write_recipe(folder / "r.yml", RECIPES[recipe].replace("DIR", str(folder)).replace("&", f"+{folder}/")),
        folder / "out",
    )
    report = wm.verify(folder / "out", recompute="all")
    assert report.problems == () and len(report.recomputed.names) == report.tensors


def test_verify_finds_models_that_moved_and_adapters_that_changed(folder):
    recipe = {"merge_method": "passthrough", "models": [{"model": {"model": f"{folder}/m", "lora": f"{folder}/a"}}]}
    wm.merge(recipe, folder / "out")
    (folder / "m").rename(folder / "model")
    (folder / "a").rename(folder / "adapter")
    moved = {f"{folder}/m": folder / "model", f"{folder}/a": folder / "adapter"}
    assert wm.verify(folder / "out", recompute="all", models=moved).problems == ()
    change_config(folder / "adapter", lora_alpha=12)
    with pytest.raises(wm.CheckpointError, match=r"adapter/adapter_config\.json is not the file of"):
        wm.verify(folder / "out", recompute="all", models=moved)


def test_adapters_of_the_result_of_an_earlier_document(folder):
    text = f"""
name: first
merge_method: linear
models: [{{model: {folder}/m, parameters: {{weight: 1}}}}, {{model: {folder}/n, parameters: {{weight: 3}}}}]
---
merge_method: passthrough
models: [first+{folder}/a]
"""
    wm.merge(write_recipe(folder / "r.yml", text), folder / "out", sync=False)
    first, second = text.replace("name: first\n", "").split("---\n")
    wm.merge(write_recipe(folder / "1.yml", first), folder / "first", sync=False)
    wm.merge(write_recipe(folder / "2.yml", second.replace("[first", f"[{folder}/first")), folder / "two", sync=False)
    found, wanted = tensors_of(folder / "out"), tensors_of(folder / "two")
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
