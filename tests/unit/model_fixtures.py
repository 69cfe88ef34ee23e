"""Tiny random models of several architectures, for the tests of modeling and training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SIZES = {"vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
GATED = {**SIZES, "num_key_value_heads": 2, "intermediate_size": 128, "pad_token_id": 0}
GPT2 = {"vocab_size": 96, "n_embd": 64, "n_layer": 2, "n_head": 4}
CONFIGS = {
    "llama": ("LlamaConfig", GATED),
    "qwen2": ("Qwen2Config", GATED),
    "qwen3": ("Qwen3Config", {**GATED, "head_dim": 16}),
    "gemma2": ("Gemma2Config", {**GATED, "head_dim": 16}),
    "phi3": ("Phi3Config", GATED),
    "gpt_neox": ("GPTNeoXConfig", {**SIZES, "intermediate_size": 128}),
    "gpt2": ("GPT2Config", GPT2),
    "starcoder2": ("Starcoder2Config", GATED),
    "phi": ("PhiConfig", GATED),
    "opt": ("OPTConfig", {**SIZES, "ffn_dim": 128, "word_embed_proj_dim": 64}),
}


def build_model(architecture: str, *, device: str = "meta") -> PreTrainedModel:
    """A model of two layers with random weights, or with none on the meta device."""
    import transformers

    name, sizes = CONFIGS[architecture]
    config = getattr(transformers, name)(**sizes)
    torch.manual_seed(0)
    with torch.device(device):
        return transformers.AutoModelForCausalLM.from_config(config)


def clone_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of every tensor of a model, quantization states included."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_same_state(model: torch.nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Fails unless the model has exactly these tensors, bit for bit and of the same type."""
    now = model.state_dict()
    assert list(now) == list(state)
    changed = [
        name for name, tensor in state.items() if now[name].dtype != tensor.dtype or not torch.equal(now[name], tensor)
    ]
    assert changed == []


def copy_base(target: Path, *, without: tuple[str, ...] = ()) -> Path:
    """A copy of the embedded base's folder, without the files of these names."""
    from qlora_ray import embedded

    target.mkdir()
    for source in embedded.base_path().iterdir():
        if source.name not in without:
            (target / source.name).write_bytes(source.read_bytes())
    return target
