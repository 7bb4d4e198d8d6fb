"""A model under an adapter of peft: every kind of file that peft writes, against float64 and peft's own merge."""

import json

import pytest
import torch
import warpmerge as wm
from adapter_helpers import Convolutions, gpt2, llama, make_adapter, merged_by_peft, merged_by_us, tensors_of, ulps
from helpers import write_recipe
from safetensors.torch import load_file, save_file
from warpmerge.plan.file_plan import make_plan
from warpmerge.recipe import Recipe

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CASES = {
    "linear": (llama, {"target_modules": LINEAR}),
    "one rank": (llama, {"r": 1}),
    "large": (llama, {"r": 64, "lora_alpha": 128}),
    "rslora": (llama, {"use_rslora": True}),
    "pattern of names": (llama, {"target_modules": r".*\.(q|v)_proj"}),
    "some layers": (llama, {"layers_to_transform": [1]}),
    "excluded": (llama, {"target_modules": LINEAR, "exclude_modules": ["k_proj"]}),
    "ranks": (
        llama,
        {
            "target_modules": LINEAR,
            "rank_pattern": {"q_proj": 2, r".*\.1\..*v_proj": 7, "layers.0": 9, "model.layers.0.mlp.down_proj": 3},
            "alpha_pattern": {"self_attn.q_proj": 16, "^model.layers.1.mlp.up_proj": 1},
            "use_rslora": True,
        },
    ),
    "biases": (llama, {"bias": "all"}),
    "biases of lora": (llama, {"bias": "lora_only", "lora_bias": True, "target_modules": ["q_proj"]}),
    "modules": (llama, {"modules_to_save": ["lm_head", "norm"]}),
    "embedding": (llama, {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}),
    "tied embedding": (lambda dtype: llama(dtype, tied=True), {"target_modules": ["q_proj", "embed_tokens"]}),
    "tokens": (llama, {"trainable_token_indices": [30, 3, 4]}),
    "tokens of a module": (llama, {"trainable_token_indices": {"embed_tokens": [5, 0]}}),
    "gpt2": (gpt2, {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    "gpt2 with more": (gpt2, {"target_modules": ["c_attn", "c_proj", "wte"]}),
    "convolutions": (lambda dtype: Convolutions().to(dtype), {"target_modules": ["plane", "line"]}),
}
DORA = {
    "linear": (llama, {"target_modules": LINEAR}),
    "embedding": (llama, {"target_modules": ["embed_tokens", "q_proj"]}),
    "gpt2": (gpt2, {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    "convolutions": (lambda dtype: Convolutions().to(dtype), {"target_modules": ["plane", "line"]}),
}


def save(model, path):
    if isinstance(model, Convolutions):
        path.mkdir()
        save_file(model.state_dict(), path / "model.safetensors")
    else:
        model.save_pretrained(path)
    return path


def three(tmp_path, make, dtype, config, **options):
    """Our merge, peft's, and peft's in float64."""
    torch.manual_seed(0)
    model = make(dtype)
    save(model, tmp_path / "m")
    make_adapter(model, tmp_path / "a", **config)
    ours = merged_by_us(f"{tmp_path}/m+{tmp_path}/a", tmp_path / "out", **options)
    exact = merged_by_peft(model, tmp_path / "a", torch.float64)
    changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor.double(), exact[name])]
    assert len(changed) >= 2
    assert set(changed) <= ours.keys() | {"lm_head.weight"}
    added = {name: exact[name] - tensor.double() for name, tensor in model.state_dict().items()}
    return ours, merged_by_peft(model, tmp_path / "a"), exact, added


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_like_peft(tmp_path, case, dtype):
    ours, peft, exact, added = three(tmp_path, CASES[case][0], dtype, CASES[case][1])
    for name, tensor in ours.items():
        assert tensor.dtype == dtype
        assert ulps(tensor, exact[name]) <= 0.501, name
        if dtype == torch.float32:  # peft's sums over the rank are of float32
            torch.testing.assert_close(tensor, peft[name], rtol=4 * torch.finfo(dtype).eps, atol=3e-7)
        else:  # of embeddings peft rounds what is added, too
            assert ulps(tensor, peft[name], added[name]) <= 1, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("case", DORA)
def test_dora_like_peft(tmp_path, case, dtype):
    ours, peft, exact, _ = three(tmp_path, DORA[case][0], dtype, {"use_dora": True, **DORA[case][1]})
    for name, tensor in ours.items():
        assert ulps(tensor, exact[name]) <= 0.501, name
        # peft rounds lengths to the dtype of the model
        torch.testing.assert_close(tensor, peft[name], rtol=3 * torch.finfo(dtype).eps, atol=1e-6)


# --- recipes --------------------------------------------------------------------------------------------------------


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


# --- adapters that do not fit ---------------------------------------------------------------------------------------


def change_config(path, **changes):
    config = json.loads((path / "adapter_config.json").read_text()) | changes
    (path / "adapter_config.json").write_text(json.dumps(config))


def change_tensors(path, change):
    found = load_file(path / "adapter_model.safetensors")
    save_file(change(found) or found, path / "adapter_model.safetensors")


def without(*ends):
    return lambda path: change_tensors(path, lambda t: {n: v for n, v in t.items() if not n.endswith(ends)})


def replaced(end, make):
    return lambda path: change_tensors(path, lambda t: {n: make(v) if n.endswith(end) else v for n, v in t.items()})


def renamed(old, new):
    return lambda path: change_tensors(path, lambda t: {n.replace(old, new): v for n, v in t.items()})


def added(name, tensor):
    return lambda path: change_tensors(path, lambda t: t | {name: tensor})


P = "base_model.model.model.layers"
WRONG = {
    "another width": (
        lambda path: make_adapter(llama(hidden_size=36), path, seed=3),
        ["down_proj.weight' is bfloat16 of the shape [24, 40] in model", "[36, 4] and [4, 40]"],
    ),
    "more layers": (lambda path: make_adapter(llama(layers=3), path, seed=3), ["layers.2.", "lacks"]),
    "another architecture": (
        lambda path: make_adapter(gpt2(), path, target_modules=["c_attn"]),
        ["c_attn.weight'", "lacks"],
    ),
    "a factor of two": (
        without("layers.1.mlp.down_proj.lora_B.weight"),
        ["layers.1.mlp.down_proj", "one factor of two"],
    ),
    "a layer": (
        without("layers.1.mlp.down_proj.lora_B.weight", "layers.1.mlp.down_proj.lora_A.weight"),
        ["no factors for 'model.layers.1.mlp.down_proj'"],
    ),
    "a target": (
        lambda path: change_config(path, target_modules=["q_proj", "down_proj", "lm_head"]),
        ["'lm_head'", "no factors"],
    ),
    "ranks": (replaced("1.mlp.down_proj.lora_B.weight", lambda t: torch.zeros(24, 3)), ["[24, 3]", "[4, 40]"]),
    "flat factors": (replaced("1.mlp.down_proj.lora_B.weight", lambda t: t.flatten()), ["is no factor", "gathered"]),
    "empty factors": (replaced("1.mlp.down_proj.lora_A.weight", lambda t: t[:0]), ["is no factor", "gathered"]),
    "integers": (replaced("1.mlp.down_proj.lora_A.weight", lambda t: t.int()), ["int32", "is no factor"]),
    "a tensor of nothing": (
        added(f"{P}.0.mlp.strange.weight", torch.ones(2)),
        ["'model.layers.0.mlp.strange.weight'", "lacks"],
    ),
    "a replacement of another shape": (added(f"{P}.0.mlp.up_proj.weight", torch.ones(2)), ["[2]", "[40, 24]"]),
    "a replacement of integers": (added(f"{P}.0.input_layernorm.weight", torch.ones(24).int()), ["int32"]),
    "an unknown part": (
        added(f"{P}.0.self_attn.q_proj.lora_A.bias", torch.ones(24)),
        ["q_proj.lora_A.bias", "not known"],
    ),
    "no magnitudes": (lambda path: change_config(path, use_dora=True), ["no magnitudes"]),
    "other magnitudes": (
        added(f"{P}.0.self_attn.q_proj.lora_magnitude_vector", torch.ones(5)),
        ["5 magnitudes for 24"],
    ),
    "no bias": (added(f"{P}.0.mlp.down_proj.lora_B.bias", torch.ones(24)), ["down_proj.bias'", "lacks"]),
    "two adapters": (added(f"{P}.0.self_attn.k_proj.lora_A.other.weight", torch.ones(4, 24)), ["several adapters"]),
    "another kind": (lambda path: change_config(path, peft_type="IA3"), ["'IA3'", "'LORA'"]),
    "another arithmetic": (lambda path: change_config(path, use_qalora=True), ["'use_qalora'", "not supported"]),
    "replicated layers": (lambda path: change_config(path, layer_replication=[[0, 2]]), ["'layer_replication'"]),
    "alpha is a word": (lambda path: change_config(path, lora_alpha="x"), ["'lora_alpha' must be a number, got 'x'"]),
    "rank is nothing": (lambda path: change_config(path, r=0), ["'r' must be a number, got 0"]),
    "patterns are a list": (lambda path: change_config(path, rank_pattern=["q"]), ["'rank_pattern' must be a mapping"]),
    "a pattern that never ends": (lambda path: change_config(path, rank_pattern={"(a+)+q": 1}), ["too complex"]),
    "no pattern": (lambda path: change_config(path, alpha_pattern={"(": 1}), ["no", "regular expression"]),
    "tokens beyond": (lambda path: tokens(path, [3, 33]), ["a row 33"]),
    "tokens of another number": (lambda path: tokens(path, [3]), ["2 rows of 'model.embed_tokens'", "got [3]"]),
    "no tensors": (lambda path: save_file({}, path / "adapter_model.safetensors"), ["holds no tensors"]),
    "no weights": (
        lambda path: (path / "adapter_model.safetensors").unlink(),
        ["adapter_model.safetensors is missing"],
    ),
    "a config that is none": (lambda path: (path / "adapter_config.json").write_text("[]"), ["not a JSON object"]),
    "a pickle": (
        lambda path: (path / "adapter_model.safetensors").rename(path / "adapter_model.bin"),
        ["adapter_model.bin", "peft"],
    ),
}


def tokens(path, rows):
    change_config(path, trainable_token_indices=rows)
    added("base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta", torch.ones(2, 24))(path)


@pytest.mark.parametrize("case", WRONG)
def test_adapters_that_do_not_fit(tmp_path, case):
    change, expected = WRONG[case]
    save(llama(), tmp_path / "m")
    make_adapter(llama(), tmp_path / "a")
    change(tmp_path / "a")
    with pytest.raises(wm.CheckpointError) as caught:
        merged_by_us(f"{tmp_path}/m+{tmp_path}/a", tmp_path / "out")
    message = str(caught.value)
    assert "\n" not in message and all(part in message for part in expected), message
    assert "adapter" in message or str(tmp_path / "a") in message
    assert not (tmp_path / "out").exists()


def test_a_directory_with_an_adapter_alone_is_no_model(tmp_path):
    save(llama(), tmp_path / "m")
    make_adapter(llama(), tmp_path / "a")
    with pytest.raises(wm.UsageError, match=r"holds an adapter, not a model; write MODEL\+.*a with the model"):
        merged_by_us(f"{tmp_path}/a", tmp_path / "out")
    with pytest.raises(wm.UsageError, match=r"holds no adapter_config\.json"):
        merged_by_us(f"{tmp_path}/m+{tmp_path}/m", tmp_path / "out")


NAMES = {
    "adapter names": renamed(".weight", ".default.weight"),
    "wrapped modules": renamed("base_model.model.model.layers", "base_model.model._orig_mod.model.layers"),
    "no prefix of the base": renamed("base_model.model.model.layers", "base_model.model.layers"),
}


@pytest.mark.parametrize("case", NAMES)
def test_names_that_programs_write(tmp_path, case):
    save(llama(), tmp_path / "m")
    make_adapter(llama(), tmp_path / "a")
    wanted = merged_by_us(f"{tmp_path}/m+{tmp_path}/a", tmp_path / "one")
    NAMES[case](tmp_path / "a")
    found = merged_by_us(f"{tmp_path}/m+{tmp_path}/a", tmp_path / "two")
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_notices(tmp_path):
    save(llama(), tmp_path / "m")
    make_adapter(llama(), tmp_path / "a")
    change_config(tmp_path / "a", init_lora_weights="pissa_niter_4", r=8)
    recipe = {"merge_method": "passthrough", "models": [f"{tmp_path}/m+{tmp_path}/a"]}
    notices = wm.merge(recipe, tmp_path / "out", sync=False).notices
    assert "'pissa_niter_4', which changes the model" in notices[0]
    assert "gives rank 8 to 'model.layers.0.mlp.down_proj', but the factors have rank 4" in notices[1]
    with pytest.raises(wm.UsageError, match="which changes the model"):
        wm.merge(recipe, tmp_path / "strict", strict=True)


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
