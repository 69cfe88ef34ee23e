"""Tiny random bases of the architectures that the packed engine packs, saved and loaded as any base is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers

from qlora_ray.config.schema import Model, Quantization
from qlora_ray.modeling.loading import LoadedBase, load_base, load_tokenizer
from qlora_ray.modeling.quantization import specify_quantization

# Widths are multiples of 64, the block of NF4. Weights are wide enough that logits tell tokens apart.
PLAIN = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "initializer_range": 0.1,
    "attention_dropout": 0.0,
}
GROUPED = {**PLAIN, "num_key_value_heads": 2}
# Shorter than the rows of the tests, so that it matters what a token attends to.
WINDOW = {"sliding_window": 16}
# Its layers are Conv1D, until a quantization makes Linear ones of them.
GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {**GROUPED, "tie_word_embeddings": False}),
    "llama-tied": ("LlamaConfig", {**GROUPED, "tie_word_embeddings": True}),
    "mistral": ("MistralConfig", {**GROUPED, **WINDOW}),
    # Biases on q, k and v.
    "qwen2": ("Qwen2Config", {**GROUPED, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", {**GROUPED, "head_dim": 16}),
    # Logits and attention are capped.
    "gemma2": ("Gemma2Config", {**GROUPED, **WINDOW, "head_dim": 16}),
    "gemma3": ("Gemma3TextConfig", {**GROUPED, **WINDOW, "head_dim": 16}),
    # One layer makes q, k and v; one makes gate and up.
    "phi3": ("Phi3Config", GROUPED),
    "gpt_neox": ("GPTNeoXConfig", {**PLAIN, "hidden_dropout": 0.0}),
    "starcoder2": ("Starcoder2Config", {**GROUPED, "residual_dropout": 0.0, "embedding_dropout": 0.0}),
    "gpt2": ("GPT2Config", GPT2),
}
# transformers caps attention's logits in its eager attention alone.
EAGER = ("gemma2",)


def save_random_base(config_name: str, sizes: dict[str, Any], folder: Path) -> Path:
    """Saves a base of two layers with random weights, and the embedded base's tokenizer."""
    tokenizer = load_tokenizer(Model())
    config = getattr(transformers, config_name)(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        **sizes,
    )
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def load_saved_base(folder: Path, *, method: str = "nf4") -> LoadedBase:
    """A fresh copy of a saved base, computing in fp32."""
    is_eager = json.loads((folder / "config.json").read_text())["model_type"] in EAGER
    model = Model(
        name=str(folder),
        quantization=Quantization(method=method),
        attn_implementation="eager" if is_eager else "sdpa",
    )
    return load_base(model, quantization=specify_quantization(model.quantization, compute_dtype="fp32"), device="cpu")
