"""A model under an adapter of peft: every kind of file that peft writes, against float64 and peft's own merge."""

import pytest
import torch
from adapter_helpers import LINEAR, Convolutions, gpt2, llama, make_adapter, merged_by_peft, merged_by_us, save, ulps

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
