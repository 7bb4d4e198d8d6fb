"""Checkpoints that `transformers` wrote, merged from recipes, loaded and run by `transformers` again."""

import json

import oracles
import pytest
import torch
import transformers
import warpmerge as wm
from kernel_helpers import assert_same_bits
from oracles import assert_accurate
from safetensors.torch import load_file

VOCABULARY = 96


def llama(dtype):
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
        dtype=dtype,
    )
    return transformers.LlamaForCausalLM(config)


def qwen2(dtype):
    """One tensor is both the embedding and the head."""
    config = transformers.Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        dtype=dtype,
    )
    return transformers.Qwen2ForCausalLM(config)


def gpt2(dtype):
    """Tied as well, with biases, and matrices stored the other way around."""
    config = transformers.GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64, dtype=dtype)
    return transformers.GPT2LMHeadModel(config)


FAMILIES = {"llama": llama, "qwen2": qwen2, "gpt2": gpt2}
TIED = {"qwen2", "gpt2"}
RECIPES = {
    "linear": {"models": {"one": {"weight": 0.6}, "two": {"weight": 0.4}}},
    "ties": {"models": {"one": {"weight": 1.0}, "two": {"weight": 0.5}}, "parameters": {"density": 0.4}},
    "slerp": {"models": {"base": {}, "two": {}}, "parameters": {"t": 0.3}},
}


def tuned(model, seed):
    """A fine-tune: every weight moved a little, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            step = torch.randn(parameter.shape, generator=generator) * 2e-3
            parameter.copy_((parameter.float() + step).to(parameter.dtype))
    return model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Writes base, one and two of a family once: (family, dtype, shard size) -> directory."""
    made = {}

    def save(family, dtype, shard):
        key = (family, dtype, shard)
        if key not in made:
            made[key] = tmp_path_factory.mktemp(f"{family}-{dtype}".replace("torch.", ""))
            torch.manual_seed(1)
            model = FAMILIES[family](dtype).to(dtype)
            for seed, name in enumerate(("base", "one", "two")):
                # Fine-tunes of one base: each moves on from the one before.
                tuned(model, seed).save_pretrained(made[key] / name, max_shard_size=shard)
        return made[key]

    return save


def weights_of(directory):
    return {name: t for path in sorted(directory.glob("*.safetensors")) for name, t in load_file(path).items()}


def recipe_of(method, directory, **more):
    entry = RECIPES[method]
    return {
        "merge_method": method,
        "base_model": str(directory / "base"),
        "models": [{"model": str(directory / name), "parameters": p} for name, p in entry["models"].items()],
        "parameters": entry.get("parameters", {}),
        **more,
    }


def expected(method, base, one, two):
    weights = [p["weight"] for p in RECIPES[method]["models"].values() if p]
    if method == "linear":
        return oracles.linear([one, two], weight=weights), None
    if method == "ties":
        return oracles.ties([one, two], base, weight=weights, density=0.4), None
    return oracles.slerp([base, two], t=0.3), oracles.SPHERICAL


@pytest.mark.parametrize("shard", ["1GB", "20KB"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("family", FAMILIES)
def test_merged_models_load_and_run(family, dtype, shard, saved, tmp_path):
    directory = saved(family, dtype, shard)
    sharded = (directory / "base" / "model.safetensors.index.json").exists()
    assert sharded == (shard == "20KB")
    base, one, two = (weights_of(directory / name) for name in ("base", "one", "two"))
    for method in RECIPES:
        out = tmp_path / method
        report = wm.merge(recipe_of(method, directory), out, shard_size=shard, sync=False)
        merged = weights_of(out)
        assert merged.keys() == base.keys()
        assert (report.shards > 1) == sharded == (out / "model.safetensors.index.json").exists()
        for name, tensor in merged.items():
            wanted, share = expected(method, base[name], one[name], two[name])
            assert (tensor.dtype, tensor.shape) == (dtype, base[name].shape)
            assert_accurate(tensor, wanted, share=share, most_unsure=0.02)
        check(family, dtype, out, merged)
        assert wm.verify(out).problems == ()


def check(family, dtype, out, merged):
    """What `transformers` makes of a directory."""
    model, info = transformers.AutoModelForCausalLM.from_pretrained(out, dtype="auto", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert model.dtype == dtype
    state = model.state_dict()
    for name, tensor in merged.items():
        assert_same_bits(state[name], tensor, name)
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    assert (head.data_ptr() == embedding.data_ptr()) == (family in TIED)
    assert ("lm_head.weight" in merged) == (family not in TIED)
    tokens = torch.arange(12)[None] % VOCABULARY
    with torch.no_grad():
        logits = model(tokens).logits
    assert logits.shape == (1, 12, VOCABULARY) and logits.isfinite().all()


@pytest.mark.parametrize("family", FAMILIES)
def test_merging_a_model_with_itself_computes_what_it_computed(family, saved, tmp_path):
    directory = saved(family, torch.bfloat16, "1GB")
    recipe = recipe_of("slerp", directory) | {"models": [{"model": str(directory / "one")}], "parameters": {"t": 0.0}}
    wm.merge(recipe, tmp_path / "out", sync=False)
    models = [transformers.AutoModelForCausalLM.from_pretrained(d) for d in (directory / "base", tmp_path / "out")]
    tokens = torch.arange(20)[None] % VOCABULARY
    with torch.no_grad():
        before, after = (m(tokens).logits for m in models)
    assert torch.equal(before, after)


def test_out_dtype_reaches_the_config(saved, tmp_path):
    directory = saved("qwen2", torch.float32, "1GB")
    wm.merge(recipe_of("ties", directory, out_dtype="bfloat16"), tmp_path / "out", sync=False)
    assert {t.dtype for t in weights_of(tmp_path / "out").values()} == {torch.bfloat16}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config.get("dtype", config.get("torch_dtype")) == "bfloat16"
    assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").dtype == torch.bfloat16


def test_state_dicts_of_models(saved):
    """In memory as from files; what is tied in the models is tied in the result and loads."""
    directory = saved("gpt2", torch.float32, "1GB")
    models = [transformers.AutoModelForCausalLM.from_pretrained(directory / n) for n in ("base", "one", "two")]
    base, *others = (m.state_dict() for m in models)
    merged = wm.merge_state_dicts(others, "ties", base=base, weight=[1.0, 0.5], density=0.4)
    assert merged["lm_head.weight"] is merged["transformer.wte.weight"]
    for name, tensor in merged.items():
        wanted = oracles.ties([o[name] for o in others], base[name], weight=[1.0, 0.5], density=0.4)
        assert_accurate(tensor, wanted, most_unsure=0.02)
    models[0].load_state_dict(merged)
    assert_same_bits(models[0].lm_head.weight, merged["transformer.wte.weight"])
