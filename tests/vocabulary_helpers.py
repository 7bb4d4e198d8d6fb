"""Small models with tokenizers. Every row of an embedding has one value, so that it says where it comes from."""

import json

import numpy as np
from helpers import array, read_model, write_model
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def bpe(tokens, merges=()):
    return Tokenizer(models.BPE(vocab={token: n for n, token in enumerate(tokens)}, merges=list(merges)))


def wordpiece(tokens):
    made = Tokenizer(models.WordPiece(vocab={token: n for n, token in enumerate(tokens)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return made


def unigram(tokens):
    made = Tokenizer(models.Unigram([(token, -float(n)) for n, token in enumerate(tokens)], unk_id=0))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    return made


KINDS = {"bpe": bpe, "wordpiece": wordpiece, "unigram": unigram}


def words(tokens, added=(), special=(), kind="bpe"):
    """A tokenizer of these tokens, then added ones, then special ones."""
    made = KINDS[kind](tokens)
    made.add_tokens([AddedToken(token, special=False, normalized=True) for token in added])
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return made


def byte_level(extra=()):
    """A tokenizer such as Llama 3 and Qwen have, which transformers loads: bytes, a few merges, special tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = bpe([*letters, "th", "the"], [("t", "h"), ("th", "e")])
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<s>", "</s>"])
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", made.token_to_id("<s>"))]
    )
    made.add_tokens([AddedToken(token, normalized=True, special=False) for token in extra])
    return made


def rows(first, count, dtype=np.float32):
    """Row i has the value first + i."""
    return np.repeat(np.arange(first, first + count, dtype=dtype)[:, None], 3, 1)


def model(path, tokenizer, first, *, count=None, config=None, files=None, head=None, tensor=None):
    """A model whose embedding has the rows first, first + 1, ...; `head`: so has the head, from that number on."""
    count = tokenizer.get_vocab_size() if count is None else count
    tensor = tensor or (lambda values: values)
    tensors = {EMBED: tensor(rows(first, count)), "model.layers.0.w": np.full((2, 2), first, np.float32)}
    if head is not None:
        tensors[HEAD] = tensor(rows(head, count))
    config = {"model_type": "llama", "num_hidden_layers": 1, "vocab_size": count} | (config or {})
    small = {} if tokenizer is None else {"tokenizer.json": tokenizer.to_str()}
    return str(write_model(path, tensors, config=config, files=small | (files or {})))


def ids(out):
    return Tokenizer.from_file(str(out / "tokenizer.json")).get_vocab(with_added_tokens=True)


def values(out, name=EMBED):
    """The value of each row."""
    found = array(read_model(out)[name])
    assert (found == found[:, :1]).all()
    return [round(float(value), 4) for value in found[:, 0]]


def by_token(out, name=EMBED):
    found = values(out, name)
    return {token: found[number] for token, number in sorted(ids(out).items(), key=lambda pair: pair[1])}


def config(out):
    return json.loads((out / "config.json").read_text())


def linear(*models, **keys):
    """A sum of models with weights of 1."""
    return {"merge_method": "linear", "models": list(models), "parameters": {"weight": 1, "normalize": False}} | keys
