"""The sizes of a model, read from its config.json: enough to count its bytes without loading it."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from qlora_ray.errors import ModelError

Layout = Literal["llama", "phi3", "mlp", "gpt_neox", "gpt2"]

# Which linears a decoder layer has. Read from transformers 5.23, models/<type>/modeling_<type>.py.
LAYOUT_OF_TYPE: dict[str, Layout] = {
    **dict.fromkeys(
        (
            "llama", "mistral", "ministral", "qwen2", "qwen3", "smollm3", "olmo", "olmo2", "olmo3", "granite",
            "stablelm", "cohere", "cohere2", "gemma", "gemma2", "gemma3", "gemma3_text", "helium", "exaone4",
        ),
        "llama",
    ),
    "phi3": "phi3",
    "starcoder2": "mlp",
    "phi": "mlp",
    "gpt_neox": "gpt_neox",
    "gpt2": "gpt2",
}  # fmt: skip
# Linears of the layouts, as preset -> module names. `attention-qv` of a fused projection is the whole of it.
PRESETS: dict[Layout, dict[str, tuple[str, ...]]] = {
    "llama": {"attention-qv": ("q_proj", "v_proj"), "attention": ("q_proj", "k_proj", "v_proj", "o_proj")},
    "phi3": {"attention-qv": ("qkv_proj",), "attention": ("qkv_proj", "o_proj")},
    "mlp": {"attention-qv": ("q_proj", "v_proj"), "attention": ("q_proj", "k_proj", "v_proj", "o_proj")},
    "gpt_neox": {"attention-qv": ("query_key_value",), "attention": ("query_key_value", "attention.dense")},
    "gpt2": {"attention-qv": ("c_attn",), "attention": ("c_attn", "attn.c_proj")},
}
# config.json keys, with the older names that gpt2 uses.
KEY_NAMES = {
    "hidden_size": ("hidden_size", "n_embd"),
    "num_layers": ("num_hidden_layers", "n_layer"),
    "num_heads": ("num_attention_heads", "n_head"),
    "vocab_size": ("vocab_size",),
}
EXPERT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_intermediate_size")
# transformers leaves a key out of config.json when it has the class's default; these defaults are not False.
TIED_BY_DEFAULT = ("gemma", "gemma2", "gemma3", "gemma3_text", "gpt2", "cohere", "cohere2", "starcoder2")
HEAD_DIM_DEFAULTS = {"gemma": 256, "gemma2": 256, "gemma3": 256, "gemma3_text": 256, "qwen3": 128}
DEFAULT_MAX_POSITIONS = 2048


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a decoder-only model.

    `layout_assumed` is True for a model type that is not in LAYOUT_OF_TYPE and is taken to be like Llama.
    """

    model_type: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    tie_word_embeddings: bool
    max_position_embeddings: int
    layout: Layout = "llama"
    layout_assumed: bool = False

    def linears(self) -> dict[str, tuple[int, int]]:
        """Module name -> (in, out) of the linears of one decoder layer: those that are quantized."""
        h, i = self.hidden_size, self.intermediate_size
        q, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        separate = {"q_proj": (h, q), "k_proj": (h, kv), "v_proj": (h, kv)}
        if self.layout == "llama":
            return {
                **separate,
                "o_proj": (q, h),
                "gate_proj": (h, i),
                "up_proj": (h, i),
                "down_proj": (i, h),
            }
        if self.layout == "phi3":
            return {
                "qkv_proj": (h, q + 2 * kv),
                "o_proj": (q, h),
                "gate_up_proj": (h, 2 * i),
                "down_proj": (i, h),
            }
        if self.layout == "gpt_neox":
            return {
                "query_key_value": (h, 3 * h),
                "attention.dense": (h, h),
                "dense_h_to_4h": (h, i),
                "dense_4h_to_h": (i, h),
            }
        if self.layout == "gpt2":
            return {"c_attn": (h, 3 * h), "attn.c_proj": (h, h), "c_fc": (h, i), "mlp.c_proj": (i, h)}
        if self.model_type == "phi":
            return {**separate, "dense": (q, h), "fc1": (h, i), "fc2": (i, h)}
        return {**separate, "o_proj": (q, h), "c_fc": (h, i), "c_proj": (i, h)}

    def target_linears(self, targets: str | Sequence[str]) -> dict[str, tuple[int, int]]:
        """The linears of one layer that a preset or a list of names adapts.

        Names match as in PEFT's target_modules: whole, or the end of the name after a dot.

        Raises:
            ModelError: A name matches no linear.
        """
        linears = self.linears()
        if targets == "all-linear":
            return linears
        if isinstance(targets, str):
            presets = dict(PRESETS[self.layout])
            if self.model_type == "phi":
                presets["attention"] = ("q_proj", "k_proj", "v_proj", "dense")
            if targets not in presets:
                raise ModelError(
                    f"lora.target_modules must be {', '.join(presets)}, all-linear or a list, got {targets!r}."
                )
            targets = presets[targets]
        chosen: dict[str, tuple[int, int]] = {}
        for target in targets:
            name = target.rpartition(".")[2]
            found = {key: dims for key, dims in linears.items() if _matches(key, target)}
            if not found and name == "lm_head":
                continue  # one module, not one per layer: counted by num_adapter_parameters
            if not found:
                near = difflib.get_close_matches(name, linears, n=1)
                hint = f" Did you mean {near[0]}?" if near else ""
                raise ModelError(
                    f"lora.target_modules: a {self.model_type} layer has {', '.join(linears)}, got {target!r}.{hint}"
                )
            chosen.update(found)
        return chosen

    def num_adapter_parameters(self, targets: str | Sequence[str], r: int) -> int:
        """r * sum(in + out) over the adapted modules (LoRA, arXiv 2106.09685)."""
        per_layer = sum(d_in + d_out for d_in, d_out in self.target_linears(targets).values())
        total = r * self.num_layers * per_layer
        if not isinstance(targets, str) and any(target.rpartition(".")[2] == "lm_head" for target in targets):
            total += r * (self.hidden_size + self.vocab_size)
        return total

    @property
    def num_linear_parameters(self) -> int:
        """Weights of the decoder layers' linears: those that are quantized."""
        return self.num_layers * sum(d_in * d_out for d_in, d_out in self.linears().values())

    @property
    def num_embedding_parameters(self) -> int:
        """Input embeddings, learnt positions of gpt2, and the head where it is not tied to them."""
        tables = 1 if self.tie_word_embeddings else 2
        positions = self.max_position_embeddings if self.layout == "gpt2" else 0
        return (tables * self.vocab_size + positions) * self.hidden_size

    @property
    def num_norms_per_layer(self) -> int:
        return 4 if self.model_type in ("gemma2", "gemma3", "gemma3_text") else 2

    @property
    def num_norm_parameters(self) -> int:
        """Norm weights of the layers and the last one. Biases and norms of single heads are left out."""
        return (self.num_norms_per_layer * self.num_layers + 1) * self.hidden_size

    @property
    def has_grouped_keys(self) -> bool:
        """Whether several query heads share a key (grouped-query attention)."""
        return self.num_kv_heads < self.num_heads

    @property
    def num_other_parameters(self) -> int:
        """What is not quantized."""
        return self.num_embedding_parameters + self.num_norm_parameters

    @property
    def num_parameters(self) -> int:
        return self.num_linear_parameters + self.num_other_parameters

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelShape:
        return cls(**values)

    @classmethod
    def from_hf_config(cls, config: dict[str, Any]) -> ModelShape:
        """Read a transformers config.json, also one that nests the language model under `text_config`.

        Raises:
            ModelError: Mixture-of-experts, encoder-decoder, or a size is missing.
        """
        tied = config.get("tie_word_embeddings")
        if isinstance(config.get("text_config"), dict):
            nested = config["text_config"]
            tied = nested.get("tie_word_embeddings", tied)
            config = nested if "model_type" in nested else {**nested, "model_type": config.get("model_type")}
        model_type = str(config.get("model_type") or "unknown")
        _check_layout(model_type, config)
        sizes = {name: _read_size(model_type, config, keys) for name, keys in KEY_NAMES.items()}
        hidden_size, num_heads = sizes["hidden_size"], sizes["num_heads"]
        return cls(
            model_type=model_type,
            intermediate_size=_read_intermediate_size(model_type, config, hidden_size),
            num_kv_heads=int(config.get("num_key_value_heads") or num_heads),
            head_dim=int(config.get("head_dim") or HEAD_DIM_DEFAULTS.get(model_type) or hidden_size // num_heads),
            tie_word_embeddings=model_type in TIED_BY_DEFAULT if tied is None else bool(tied),
            max_position_embeddings=int(
                config.get("max_position_embeddings") or config.get("n_positions") or DEFAULT_MAX_POSITIONS
            ),
            layout=LAYOUT_OF_TYPE.get(model_type, "llama"),
            layout_assumed=model_type not in LAYOUT_OF_TYPE,
            **sizes,
        )


def _matches(key: str, target: str) -> bool:
    return key == target or target.endswith(f".{key}") or key.endswith(f".{target}")


def _check_layout(model_type: str, config: dict[str, Any]) -> None:
    experts = [key for key in EXPERT_KEYS if config.get(key)]
    if experts:
        raise ModelError(
            f"model: {model_type} has experts ({experts[0]}: {config[experts[0]]}), which the memory model does not "
            "know. Choose a dense model."
        )
    if config.get("is_encoder_decoder"):
        raise ModelError(f"model: must be decoder-only, got {model_type}, which has an encoder. Choose another base.")


def _read_size(model_type: str, config: dict[str, Any], keys: tuple[str, ...]) -> int:
    for key in keys:
        if isinstance(config.get(key), int) and config[key] > 0:
            return int(config[key])
    raise ModelError(
        f"model: config.json of model type {model_type} must have {' or '.join(keys)} as a number above 0, got "
        f"{config.get(keys[0])!r}. Known types: {', '.join(sorted(LAYOUT_OF_TYPE))}."
    )


def _read_intermediate_size(model_type: str, config: dict[str, Any], hidden_size: int) -> int:
    if model_type == "gpt2":
        return int(config.get("n_inner") or 4 * hidden_size)
    return _read_size(model_type, config, ("intermediate_size",))
