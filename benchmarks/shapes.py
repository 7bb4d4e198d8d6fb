"""The models whose checkpoints are benchmarked: tensor names, shapes and configuration files."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TensorSpec:
    name: str
    shape: tuple[int, ...]
    kind: str  # "weight", "bias" or "norm": what its values look like

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Decoder:
    """A decoder-only transformer with the tensor names of its Hugging Face checkpoint."""

    family: str  # "qwen2", "llama" or "qwen3_moe"
    layers: int
    hidden: int
    intermediate: int  # of one expert where there are experts
    vocab: int
    heads: int
    kv_heads: int
    head_dim: int
    experts: int = 0
    tied: bool = True

    def tensors(self) -> list[TensorSpec]:
        embedding = (self.vocab, self.hidden)
        specs = [TensorSpec("model.embed_tokens.weight", embedding, "weight")]
        for layer in range(self.layers):
            specs += self._layer(f"model.layers.{layer}.")
        specs.append(TensorSpec("model.norm.weight", (self.hidden,), "norm"))
        if not self.tied:
            specs.append(TensorSpec("lm_head.weight", embedding, "weight"))
        return specs

    def _layer(self, prefix: str) -> Iterator[TensorSpec]:
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        yield TensorSpec(prefix + "input_layernorm.weight", (self.hidden,), "norm")
        for name, width in (("q", q), ("k", kv), ("v", kv)):
            yield TensorSpec(f"{prefix}self_attn.{name}_proj.weight", (width, self.hidden), "weight")
            if self.family == "qwen2":
                yield TensorSpec(f"{prefix}self_attn.{name}_proj.bias", (width,), "bias")
        yield TensorSpec(prefix + "self_attn.o_proj.weight", (self.hidden, q), "weight")
        if self.family == "qwen3_moe":
            yield TensorSpec(prefix + "self_attn.q_norm.weight", (self.head_dim,), "norm")
            yield TensorSpec(prefix + "self_attn.k_norm.weight", (self.head_dim,), "norm")
        yield TensorSpec(prefix + "post_attention_layernorm.weight", (self.hidden,), "norm")
        if not self.experts:
            yield from self._mlp(prefix + "mlp.")
            return
        yield TensorSpec(prefix + "mlp.gate.weight", (self.experts, self.hidden), "weight")
        for expert in range(self.experts):
            yield from self._mlp(f"{prefix}mlp.experts.{expert}.")

    def _mlp(self, prefix: str) -> Iterator[TensorSpec]:
        for name in ("gate_proj", "up_proj"):
            yield TensorSpec(f"{prefix}{name}.weight", (self.intermediate, self.hidden), "weight")
        yield TensorSpec(prefix + "down_proj.weight", (self.hidden, self.intermediate), "weight")

    def config(self, dtype: str) -> dict[str, Any]:
        """The `config.json` that transformers and other merge tools need to recognise the model."""
        class_name = {"qwen2": "Qwen2", "llama": "Llama", "qwen3_moe": "Qwen3Moe"}[self.family]
        config: dict[str, Any] = {
            "architectures": [class_name + "ForCausalLM"],
            "model_type": self.family,
            "torch_dtype": {"bf16": "bfloat16", "fp32": "float32"}[dtype],
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab,
            "tie_word_embeddings": self.tied,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-6,
            "rope_theta": 1000000.0,
            "max_position_embeddings": 32768,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }
        if self.experts:
            config |= {
                "moe_intermediate_size": self.intermediate,
                "num_experts": self.experts,
                "num_experts_per_tok": 8,
                "decoder_sparse_step": 1,
                "mlp_only_layers": [],
                "norm_topk_prob": True,
            }
        return config


@dataclass(frozen=True)
class Experts:
    """Nothing but many small matrices of equal size, named as those of a mixture of experts."""

    count: int
    shape: tuple[int, int]
    layers: int = 64

    def tensors(self) -> list[TensorSpec]:
        each = -(-self.count // (3 * self.layers))  # experts of a layer
        parts = [f"{e}.{part}_proj.weight" for e in range(each) for part in ("gate", "up", "down")]
        names = (f"model.layers.{layer}.mlp.experts.{part}" for layer in range(self.layers) for part in parts)
        return [TensorSpec(name, self.shape, "weight") for name in itertools.islice(names, self.count)]

    def config(self, dtype: str) -> dict[str, Any]:
        return {"architectures": ["Experts"], "torch_dtype": {"bf16": "bfloat16", "fp32": "float32"}[dtype]}


SHAPES: dict[str, Callable[[], Decoder | Experts]] = {
    # Qwen/Qwen2.5-0.5B: 290 tensors, 494 M parameters. The shape of the targets.
    "qwen2.5-0.5b": lambda: Decoder("qwen2", 24, 896, 4864, 151936, heads=14, kv_heads=2, head_dim=64),
    # meta-llama/Llama-3.2-1B: 146 tensors, 1.24 G parameters.
    "llama-3.2-1b": lambda: Decoder("llama", 16, 2048, 8192, 128256, heads=32, kv_heads=8, head_dim=64),
    # The layout of Qwen3-30B-A3B with narrower experts: 4,827 tensors, most of them of 128 KB in bf16.
    "moe": lambda: Decoder("qwen3_moe", 24, 512, 128, 32000, 8, 2, 64, experts=64, tied=False),
    # 100,000 tensors of 2 KB in bf16: next to nothing but what a tensor costs beside its bytes.
    "many": lambda: Experts(100_000, (32, 32)),
    # For agreement between tools: few enough elements that every delta can have a magnitude of its own.
    "small": lambda: Decoder("qwen2", 2, 256, 1024, 2048, heads=4, kv_heads=2, head_dim=64),
    # For start-up: nothing but the fixed costs of a merge.
    "tiny": lambda: Decoder("qwen2", 2, 64, 128, 256, heads=2, kv_heads=1, head_dim=32),
}
