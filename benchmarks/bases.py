"""The base that is measured: the embedded one, a folder, or random weights of a named shape. Nothing is downloaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlora_ray.config.schema import Model, Precision
from qlora_ray.errors import ConfigError
from qlora_ray.hardware import ModelShape
from qlora_ray.modeling.loading import EMBEDDED, LoadedBase, load_base, load_tokenizer, read_shape
from qlora_ray.modeling.quantization import specify_quantization, torch_dtype

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

# config.json of Qwen/Qwen2-0.5B, Qwen/Qwen2-1.5B and meta-llama/Meta-Llama-3-8B on the hub.
SHAPES: dict[str, dict[str, Any]] = {
    "qwen2-0.5b": {
        "model_type": "qwen2",
        "vocab_size": 151936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "qwen2-1.5b": {
        "model_type": "qwen2",
        "vocab_size": 151936,
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "llama-8b": {
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": False,
    },
}


@dataclass(frozen=True)
class BaseChoice:
    """Which base is measured.

    Attributes:
        name: `embedded`, a folder, or what the random weights are of.
        config: Of a base with random weights; None where weights are read.
    """

    name: str
    config: PreTrainedConfig | None = None

    @property
    def model(self) -> Model:
        """The config section for a base whose weights are read."""
        return Model(name=self.name)

    @property
    def is_embedded(self) -> bool:
        return self.name == EMBEDDED

    def shape(self) -> ModelShape:
        """Sizes for the planner."""
        return read_shape(self.model) if self.config is None else ModelShape.from_hf_config(self.config.to_dict())


def choose_base(*, model: str, shape: str | None) -> BaseChoice:
    """The base behind --model and --shape.

    Raises:
        ConfigError: An unknown shape, or a config.json that transformers does not know.
    """
    from transformers import AutoConfig

    if shape is not None:
        if shape not in SHAPES:
            raise ConfigError(f"--shape must be one of {', '.join(SHAPES)}, got {shape!r}. Or give --model.")
        return BaseChoice(shape, AutoConfig.for_model(**SHAPES[shape]))
    if model.endswith(".json"):
        try:
            return BaseChoice(f"random weights of {Path(model).name}", AutoConfig.from_pretrained(model))
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"--model: {model} must be a config.json of transformers, got {str(error).splitlines()[0]}. "
                "Give a config.json, a folder with weights, or --shape."
            ) from None
    return BaseChoice(model)


def load_choice(choice: BaseChoice, *, precision: Precision, device: str) -> LoadedBase:
    """The base on its device, in NF4 with double quantization."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    spec = specify_quantization(Model().quantization, compute_dtype=precision)
    if choice.config is None:
        return load_base(choice.model, quantization=spec, device=device)
    import torch
    from transformers import AutoModelForCausalLM

    dtype = torch_dtype(precision)
    torch.manual_seed(0)
    with torch.device(device):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            choice.config, dtype=dtype, attn_implementation="sdpa"
        )
    model.requires_grad_(False)
    model.config.use_cache = False
    quantize_linears(model, dtype=dtype, device=device)
    # Rows are random ids: of the tokenizer only the pad token is used.
    return LoadedBase(model, load_tokenizer(Model()), spec, device)


def quantize_linears(model: PreTrainedModel, *, dtype: Any, device: str) -> None:
    """Puts NF4 layers in the place of all linear ones but the head, as transformers does while it loads a base.

    Source: transformers/integrations/bitsandbytes.py, replace_with_bnb_linear (5.23): it leaves the head out.
    """
    import bitsandbytes
    from torch import nn

    head = model.get_output_embeddings()
    paths = [path for path, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head]
    for path in paths:
        linear: Any = model.get_submodule(path)
        layer: Any = bitsandbytes.nn.Linear4bit(
            linear.in_features,
            linear.out_features,
            bias=linear.bias is not None,
            compute_dtype=dtype,
            compress_statistics=True,
            quant_type="nf4",
            device="meta",
        )
        weight: Any = bitsandbytes.nn.Params4bit(
            linear.weight.data, requires_grad=False, compress_statistics=True, quant_type="nf4", module=layer
        )
        layer.weight = weight.to(device)
        if linear.bias is not None:
            layer.bias = nn.Parameter(linear.bias.data, requires_grad=False)
        # See modeling.loading: the CPU's inference path would repack the weight in place.
        layer.support_avx512bf16_for_cpu = False
        layer.requires_grad_(False)
        model.set_submodule(path, layer)
    # PEFT and Trainer ask the model.
    setattr(model, "is_loaded_in_4bit", True)  # noqa: B010
