"""Hugging Face model directories: bf16 shards and an index, a config, a tokenizer of single bytes."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from .model import Config, Llama

SHARD_BYTES = 256 * 1024  # small, so that the model has several shards as large ones do
INDEX = "model.safetensors.index.json"


def save(model: Llama, config: Config, directory: Path) -> None:
    """Writes a directory that `transformers` loads with `from_pretrained`; the index comes last."""
    directory.mkdir(parents=True, exist_ok=True)
    shards: list[dict[str, Tensor]] = [{}]
    for name, tensor in model.state_dict().items():
        if shards[-1] and nbytes(shards[-1]) + 2 * tensor.numel() > SHARD_BYTES:
            shards.append({})
        shards[-1][name] = tensor.to(torch.bfloat16).contiguous()

    weight_map: dict[str, str] = {}
    for i, shard in enumerate(shards, start=1):
        file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)

    for file, content in sidecars(config).items():
        write_json(directory / file, content)
    total = sum(map(nbytes, shards))
    write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def load(directory: Path, config: Config) -> Llama:
    """The model in float32, from one file or many; a missing or an additional tensor is an error."""
    state: dict[str, Tensor] = {}
    for file in weight_files(directory):
        state |= load_file(file)
    model = Llama(config)
    model.load_state_dict(state)
    return model


def layout(directory: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The dtype and shape of every tensor, read from the headers alone."""
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    for path in weight_files(directory):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict: it cannot be iterated over
                tensor = file.get_slice(name)
                found[name] = (tensor.get_dtype(), tuple(tensor.get_shape()))
    return found


def weight_files(directory: Path) -> list[Path]:
    index = directory / INDEX
    if not index.exists():
        return [directory / "model.safetensors"]
    weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    return [directory / file for file in sorted(set(weight_map.values()))]


def nbytes(tensors: dict[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def sidecars(config: Config) -> dict[str, dict[str, Any]]:
    """Everything in the directory but the weights."""
    shape = asdict(config)
    context = shape.pop("context")
    return {
        "config.json": {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            **shape,
            "num_key_value_heads": config.num_attention_heads,
            "head_dim": config.head_dim,
            "max_position_embeddings": context,
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": False,
            "bos_token_id": None,
            "eos_token_id": None,
            "torch_dtype": "bfloat16",
        },
        "generation_config.json": {"do_sample": True, "temperature": 0.8, "max_length": context},
        "tokenizer.json": tokenizer(),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": context,
            "clean_up_tokenization_spaces": False,
        },
    }


def tokenizer() -> dict[str, Any]:
    """A byte-level BPE without merges: the id of a token is the value of its byte."""
    # GPT-2's printable stand-ins for bytes: Latin-1 where it prints, else code points from 256 on.
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    vocabulary = {chr(byte if byte in printable else 256 + others.index(byte)): byte for byte in range(256)}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "vocab": vocabulary, "merges": []},
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
