"""Merges with tokenizers, loaded and run by transformers: the model, its tokenizer, and the two together."""

import pytest
import torch
import transformers
import warpmerge as wm
from vocabulary_helpers import byte_level
from warpmerge.errors import MergeError

TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def saved(path, seed, extra=(), *, tied=False):
    """A Llama of its own vocabulary with a tokenizer that transformers wrote."""
    torch.manual_seed(seed)
    backend = byte_level(extra)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    config = transformers.LlamaConfig(
        vocab_size=backend.get_vocab_size(),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=tied,
        bos_token_id=backend.token_to_id("<s>"),
        eos_token_id=backend.token_to_id("</s>"),
    )
    transformers.LlamaForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


def loaded(path):
    model, info = transformers.AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return model.eval(), transformers.AutoTokenizer.from_pretrained(path)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("multiple", [1, 64])
def test_a_union_loads_and_runs(tmp_path, tied, multiple):
    base = saved(tmp_path / "base", 0, tied=tied)
    one = saved(tmp_path / "one", 1, ["zebra", "<tool>"], tied=tied)
    two = saved(tmp_path / "two", 2, ["<tool>", "lion"], tied=tied)
    recipe = {
        "merge_method": "linear",
        "base_model": base,
        "models": [one, two],
        "parameters": {"weight": 0.5},
        "tokenizer": {"source": "union", "pad_to_multiple_of": multiple},
        "chat_template": TEMPLATE,
    }
    wm.merge(recipe, tmp_path / "out", sync=False)
    model, tokenizer = loaded(tmp_path / "out")
    (first, old), (second, other) = loaded(one), loaded(two)
    assert len(tokenizer) == len(old) + 1 and model.config.vocab_size == -(-len(tokenizer) // multiple) * multiple
    text = "the zebra and <tool> or lion"
    assert {"zebra", "<tool>", "lion"} < set(tokenizer.tokenize(text))
    assert tokenizer(text)["input_ids"][0] == tokenizer.bos_token_id
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi"
    embedding = model.get_input_embeddings().weight
    for token in ("zebra", "lion", "<tool>", "the", "a"):
        rows = [
            source.get_input_embeddings().weight[found.convert_tokens_to_ids(token)]
            for source, found in ((first, old), (second, other))
            if token in found.get_vocab()
        ]
        wanted = torch.stack(rows).mean(0)
        torch.testing.assert_close(embedding[tokenizer.convert_tokens_to_ids(token)], wanted)
    logits = model(**tokenizer(text, return_tensors="pt")).logits
    assert logits.shape[-1] == model.config.vocab_size and torch.isfinite(logits).all()


def test_a_model_whose_own_tokenizer_is_chosen_computes_what_it_did(tmp_path):
    """All the weight on one model, with its own tokenizer, is that model."""
    base, one = saved(tmp_path / "base", 0, ["other"]), saved(tmp_path / "one", 1, ["zebra", "<tool>"])
    recipe = {
        "merge_method": "linear",
        "base_model": base,
        "models": [{"model": one, "parameters": {"weight": 1}}],
        "tokenizer_source": one,
    }
    wm.merge(recipe, tmp_path / "out", sync=False)
    model, tokenizer = loaded(tmp_path / "out")
    source, own = loaded(one)
    inputs = tokenizer("the zebra", return_tensors="pt")
    assert torch.equal(inputs["input_ids"], own("the zebra", return_tensors="pt")["input_ids"])
    assert torch.equal(model(**inputs).logits, source(**inputs).logits)
    assert model.config.bos_token_id == source.config.bos_token_id


def test_a_padding_token_beyond_the_rows_does_not_come_back(tmp_path):
    """A tokenizer with a token that the model has no row for: the output's tokenizer has no id beyond its rows."""
    base = saved(tmp_path / "base", 0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(base)
    one = saved(tmp_path / "one", 1)
    recipe = {"merge_method": "linear", "base_model": base, "models": [base, one], "parameters": {"weight": 0.5}}
    wm.merge(recipe | {"tokenizer_source": "union"}, tmp_path / "out", sync=False)
    model, found = loaded(tmp_path / "out")
    assert found.pad_token is None and max(found.get_vocab().values()) < model.config.vocab_size


def test_without_a_tokenizer_vocabularies_must_agree(tmp_path):
    base, one = saved(tmp_path / "base", 0), saved(tmp_path / "one", 1, ["zebra"])
    recipe = {"merge_method": "linear", "models": [base, one], "parameters": {"weight": 0.5}}
    with pytest.raises(MergeError, match="tokenizer_source: union"):
        wm.merge(recipe, tmp_path / "out", sync=False)
