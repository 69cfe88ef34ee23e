"""The sizes of a model: enough to count its bytes without loading it. Here they are read from config.json alone."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from qlora_ray.errors import ModelError
from qlora_ray.hardware.stored import StoredQuantization, read_stored

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
GATED_LAYOUTS = ("llama", "phi3")
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
NORMS_PER_LAYER = dict.fromkeys(("gemma2", "gemma3", "gemma3_text"), 4)  # else 2
DEFAULT_MAX_POSITIONS = 2048
# Ours, far above any model's: what is beyond would be built for hours, or overflow torch's sizes.
MAX_LAYERS, MAX_SIZE = 10_000, 2**31 - 1


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a decoder-only model.

    `from_hf_config` takes the counts from the tables above, without norms of single heads and biases;
    `modeling.shape.count_shape` from the model as transformers builds it.

    Attributes:
        linears: Module name -> (in, out) of the linears of one decoder layer: those that are quantized.
        presets: Preset of lora.target_modules -> the names of the linears that it adapts.
        num_embedding_parameters: Input embeddings, learnt positions, and the head where it is not tied to them.
        num_norm_parameters: All that is neither linears nor embeddings.
        num_norms_per_layer: Those over the whole hidden state.
        num_mlp_tensors: Tensors of intermediate width that one layer's MLP keeps for backward: what comes out of its
            first linears, and the activation's result.
        stored: The quantization that its files are in already; None where they are not quantized.
        layout_assumed: Whether the counts are Llama's, for want of a model and of a known model type.
    """

    model_type: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    linears: Mapping[str, tuple[int, int]]
    presets: Mapping[str, tuple[str, ...]]
    num_embedding_parameters: int
    num_norm_parameters: int
    num_norms_per_layer: int
    num_mlp_tensors: int
    layout_assumed: bool = False
    stored: StoredQuantization | None = None

    def target_linears(self, targets: str | Sequence[str]) -> dict[str, tuple[int, int]]:
        """The linears of one layer that a preset or a list of names adapts.

        Names match as in PEFT's target_modules: whole, or the end of the name after a dot.

        Raises:
            ModelError: A name matches no linear.
        """
        if targets == "all-linear":
            return dict(self.linears)
        if isinstance(targets, str):
            if targets not in self.presets:
                raise ModelError(
                    f"lora.target_modules must be {', '.join(self.presets)}, all-linear or a list, got {targets!r}."
                )
            targets = self.presets[targets]
        chosen: dict[str, tuple[int, int]] = {}
        for target in targets:
            name = target.rpartition(".")[2]
            found = {key: dims for key, dims in self.linears.items() if _matches(key, target)}
            if not found and name == "lm_head":
                continue  # one module, not one per layer: counted by num_adapter_parameters
            if not found:
                near = difflib.get_close_matches(name, self.linears, n=1)
                hint = f" Did you mean {near[0]}?" if near else ""
                raise ModelError(
                    f"lora.target_modules: a {self.model_type} layer has {', '.join(self.linears)}, got {target!r}."
                    f"{hint}"
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
        return self.num_layers * sum(d_in * d_out for d_in, d_out in self.linears.values())

    @property
    def has_grouped_keys(self) -> bool:
        """Whether several query heads share a key (grouped-query attention)."""
        return self.num_kv_heads < self.num_heads

    @property
    def num_parameters(self) -> int:
        """All of them."""
        return self.num_linear_parameters + self.num_embedding_parameters + self.num_norm_parameters

    @classmethod
    def from_hf_config(cls, config: dict[str, Any]) -> ModelShape:
        """Read a transformers config.json, also one that nests the language model under `text_config`.

        Raises:
            ModelError: Mixture-of-experts, encoder-decoder, or a size is missing.
        """
        tied = config.get("tie_word_embeddings")
        stored = read_stored(config)
        if isinstance(config.get("text_config"), dict):
            nested = config["text_config"]
            tied = nested.get("tie_word_embeddings", tied)
            config = nested if "model_type" in nested else {**nested, "model_type": config.get("model_type")}
        model_type = str(config.get("model_type") or "unknown")
        _check_layout(model_type, config)
        sizes = {name: _read_size(model_type, config, keys) for name, keys in KEY_NAMES.items()}
        hidden_size, num_heads, num_layers = sizes["hidden_size"], sizes["num_heads"], sizes["num_layers"]
        intermediate_size = _read_intermediate_size(model_type, config, hidden_size)
        num_kv_heads = _read_size(model_type, config, ("num_key_value_heads",), default=num_heads)
        own_dim = HEAD_DIM_DEFAULTS.get(model_type) or hidden_size // num_heads
        head_dim = _read_size(model_type, config, ("head_dim",), default=own_dim)
        positions = ("max_position_embeddings", "n_positions")
        max_positions = _read_size(model_type, config, positions, default=DEFAULT_MAX_POSITIONS)
        layout = LAYOUT_OF_TYPE.get(model_type, "llama")
        presets = dict(PRESETS[layout])
        if model_type == "phi":
            presets["attention"] = ("q_proj", "k_proj", "v_proj", "dense")
        num_tables = 1 if (model_type in TIED_BY_DEFAULT if tied is None else tied) else 2
        num_positions = max_positions if layout == "gpt2" else 0
        num_norms = NORMS_PER_LAYER.get(model_type, 2)
        return cls(
            model_type=model_type,
            intermediate_size=intermediate_size,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            max_position_embeddings=max_positions,
            linears=_list_linears(
                layout, model_type, hidden_size, intermediate_size, num_heads * head_dim, num_kv_heads * head_dim
            ),
            presets=presets,
            num_embedding_parameters=(num_tables * sizes["vocab_size"] + num_positions) * hidden_size,
            num_norm_parameters=(num_norms * num_layers + 1) * hidden_size,
            num_norms_per_layer=num_norms,
            num_mlp_tensors=3 if layout in GATED_LAYOUTS else 2,
            layout_assumed=model_type not in LAYOUT_OF_TYPE,
            stored=stored,
            **sizes,
        )


def _list_linears(layout: Layout, model_type: str, h: int, i: int, q: int, kv: int) -> dict[str, tuple[int, int]]:
    """Returns the linears of a decoder layer; h hidden, i intermediate, q query and kv key width."""
    separate = {"q_proj": (h, q), "k_proj": (h, kv), "v_proj": (h, kv)}
    if model_type == "phi":
        return {**separate, "dense": (q, h), "fc1": (h, i), "fc2": (i, h)}
    match layout:
        case "llama":
            return {**separate, "o_proj": (q, h), "gate_proj": (h, i), "up_proj": (h, i), "down_proj": (i, h)}
        case "phi3":
            return {"qkv_proj": (h, q + 2 * kv), "o_proj": (q, h), "gate_up_proj": (h, 2 * i), "down_proj": (i, h)}
        case "gpt_neox":
            neox = {"dense_h_to_4h": (h, i), "dense_4h_to_h": (i, h)}
            return {"query_key_value": (h, 3 * h), "attention.dense": (h, h), **neox}
        case "gpt2":
            return {"c_attn": (h, 3 * h), "attn.c_proj": (h, h), "c_fc": (h, i), "mlp.c_proj": (i, h)}
        case "mlp":
            return {**separate, "o_proj": (q, h), "c_fc": (h, i), "c_proj": (i, h)}


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


def _read_size(model_type: str, config: dict[str, Any], keys: tuple[str, ...], *, default: int | None = None) -> int:
    """The size under the first of the keys that is there; the default, if there is one, where none is."""
    given = [(key, config[key]) for key in keys if config.get(key)]
    if not given and default is not None:
        return default
    for key, size in given:
        if not isinstance(size, int) or isinstance(size, bool) or size <= 0:
            continue
        largest = MAX_LAYERS if key in KEY_NAMES["num_layers"] else MAX_SIZE
        if size > largest:
            rule = f"{key} in config.json must be at most {largest:,}"
            raise ModelError(f"model: {rule}, got {size:,}. Restore the base's config.json.")
        return size
    raise ModelError(
        f"model: config.json of model type {model_type} must have {' or '.join(keys)} as a number above 0, got "
        f"{config.get(keys[0])!r}. Known types: {', '.join(sorted(LAYOUT_OF_TYPE))}."
    )


def _read_intermediate_size(model_type: str, config: dict[str, Any], hidden_size: int) -> int:
    if model_type == "gpt2":
        return _read_size(model_type, config, ("n_inner",), default=4 * hidden_size)
    return _read_size(model_type, config, ("intermediate_size",))
