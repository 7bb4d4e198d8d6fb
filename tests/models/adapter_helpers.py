"""Small models of transformers with adapters that peft wrote, and merges of both by peft and by us."""

import copy
import json
import warnings

import torch
import warpmerge as wm
from helpers import write_recipe
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SIZES = {"hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 3, "num_key_value_heads": 1}


def llama(dtype=torch.bfloat16, *, layers=2, tied=False, seed=0, **more):
    torch.manual_seed(seed)
    sizes = SIZES | {"vocab_size": 33, "num_hidden_layers": layers, "attention_bias": True} | more
    return LlamaForCausalLM(LlamaConfig(tie_word_embeddings=tied, **sizes)).to(dtype)


def gpt2(dtype=torch.bfloat16, *, seed=0):
    torch.manual_seed(seed)
    sizes = {"vocab_size": 33, "n_positions": 16, "n_embd": 24, "n_layer": 2, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(bos_token_id=0, eos_token_id=0, **sizes)).to(dtype)


class Convolutions(torch.nn.Module):
    """No model of transformers: one module of each kind of convolution."""

    def __init__(self):
        super().__init__()
        self.plane = torch.nn.Conv2d(3, 8, (3, 2))
        self.line = torch.nn.Conv1d(4, 6, 5, bias=False)


def make_adapter(model, path, *, seed=1, noise=0.02, **config):
    """Saves an adapter for the model; every tensor that it trains is changed, so that nothing is a no-op."""
    config = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"]} | config
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = get_peft_model(copy.deepcopy(model), LoraConfig(**config))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in wrapped.parameters():
                if parameter.requires_grad:
                    parameter += (torch.randn(parameter.shape, generator=generator) * noise).to(parameter.dtype)
        wrapped.save_pretrained(path)
    return path


def merged_by_peft(model, path, dtype=None):
    """What peft merges, in the dtype of the model; `dtype`: of everything."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = copy.deepcopy(model) if dtype is None else copy.deepcopy(model).to(dtype)
        wrapped = PeftModel.from_pretrained(base, path)
        return (wrapped if dtype is None else wrapped.to(dtype)).merge_and_unload().state_dict()


def merged_by_us(reference, out, **options):
    """The tensors of a merge that copies one model."""
    recipe = write_recipe(
        out.parent / f"{out.name}.yml", {"merge_method": "passthrough", "models": [{"model": reference}]}
    )
    wm.merge(recipe, out, sync=False, **options)
    return tensors_of(out)


def tensors_of(path):
    return load_file(path / "model.safetensors")


def ulps(found, wanted, beside=None):
    """The largest difference, in units of the last place of what was found; of the larger of it and `beside`."""
    near = wanted.to(found.dtype).abs()
    if beside is not None:
        near = torch.maximum(near, beside.to(found.dtype).abs())
    step = torch.nextafter(near, torch.full_like(near, torch.inf)).double() - near.double()
    return ((found.double() - wanted.double()).abs() / step).max().item()


def save(model, path):
    if isinstance(model, Convolutions):
        path.mkdir()
        save_file(model.state_dict(), path / "model.safetensors")
    else:
        model.save_pretrained(path)
    return path


def change_config(path, **changes):
    config = json.loads((path / "adapter_config.json").read_text()) | changes
    (path / "adapter_config.json").write_text(json.dumps(config))
