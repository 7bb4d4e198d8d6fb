"""The names of the files of a model directory, and which of them a merge takes over."""

from __future__ import annotations

import re
from pathlib import PurePath

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
CONFIG = "config.json"
GENERATION = "generation_config.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
CARD = "README.md"
MANIFEST = "warpmerge.json"
RECIPE = "mergekit_config.yml"  # where programs look for the recipe of a merge
COPIED_SUFFIXES = {".json", ".jinja", ".model", ".txt", ".tiktoken", ".bpe", ".vocab", ".py"}
TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
SPECIAL_TOKENS, ADDED_TOKENS = "special_tokens_map.json", "added_tokens.json"
TEMPLATE, OLD_TEMPLATE = "chat_template.jinja", "chat_template.json"
NOT_COPIED = {
    CARD.lower(),
    MANIFEST,
    CONFIG,
    "trainer_state.json",
    ADAPTER_CONFIG,
    "quantize_config.json",
}


def shard_name(number: int, count: int) -> str:
    """The name of one of several output shards; `number` counts from 0."""
    return f"model-{number + 1:05d}-of-{count:05d}.safetensors"


_SHARD = re.compile(r"model-[0-9]{5,}-of-[0-9]{5,}\.safetensors")


def is_weights(name: str) -> bool:
    """Whether a merge could have written weights, or their index, under this name."""
    return name in (SINGLE, INDEX) or _SHARD.fullmatch(name) is not None


def is_companion(name: str) -> bool:
    """Whether a file of this name is taken over as it is. Hidden files are not: they are left by programs."""
    return (
        PurePath(name).suffix in COPIED_SUFFIXES
        and name.lower() not in NOT_COPIED  # some file systems take names that differ in case for one
        and not name.endswith(".index.json")
        and not name.startswith(".")
    )


# What tokenizers are made of where there is no tokenizer.json, or beside it.
VOCABULARIES = {"vocab.json", "merges.txt", "vocab.txt", "bpe.codes", "tekken.json", "source.spm", "target.spm"}
_VOCABULARY_SUFFIXES = (".model", ".tiktoken", ".bpe", ".spm", ".vocab")
_TOKENIZER_FILES = {TOKENIZER, TOKENIZER_CONFIG, SPECIAL_TOKENS, ADDED_TOKENS, TEMPLATE, OLD_TEMPLATE}


def is_vocabulary(name: str) -> bool:
    """Whether a companion of this name holds the vocabulary of a tokenizer in a form of its own."""
    return name in VOCABULARIES or name.endswith(_VOCABULARY_SUFFIXES)


def is_tokenizer_file(name: str) -> bool:
    """Whether a companion of this name is part of a tokenizer, its chat template included."""
    return name in _TOKENIZER_FILES or is_vocabulary(name)
