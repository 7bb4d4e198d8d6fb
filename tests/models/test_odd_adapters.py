"""Adapters that do not fit their model, or are not what they should be; and names that programs of training write."""

import pytest
import torch
import warpmerge as wm
from adapter_helpers import change_config, gpt2, llama, make_adapter, merged_by_us, save
from safetensors.torch import load_file, save_file


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
