"""Which modules LoRA attaches to: presets and lists, resolved against the base that is there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qlora_ray.config.schema import Lora, Model
from qlora_ray.errors import ModelError
from qlora_ray.modeling.loading import cannot_load, resolve_model_name

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

# Names of the attention projections in the architectures of transformers 5: separate (Llama, Mistral, Qwen,
# Gemma), fused (Phi-3, GPT-NeoX, Falcon), and the outputs of OPT and Phi. GPT-2's MLP has a c_proj too.
QUERY_VALUE = ("q_proj", "v_proj")
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "dense")
FUSED_ATTENTION = ("qkv_proj", "query_key_value", "c_attn")
FUSED_OUTPUT = ("o_proj", "dense", "attn.c_proj")


def is_linear(module: torch.nn.Module) -> bool:
    """Whether it is a linear layer, also one of gptqmodel's, which hold packed weights as `qweight`."""
    import torch
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, torch.nn.Linear | Conv1D) or getattr(module, "qweight", None) is not None


def linear_names(model: PreTrainedModel) -> list[str]:
    """Last names of all linear layers but the head, sorted: `down_proj`, `q_proj`, ..."""
    head = model.get_output_embeddings()
    names = {
        name.rsplit(".", 1)[-1] for name, module in model.named_modules() if is_linear(module) and module is not head
    }
    return sorted(names)


def resolve_targets(model: PreTrainedModel, target_modules: str | list[str]) -> list[str]:
    """Module names for PEFT, from a preset or a list.

    Args:
        model: The base, with or without weights (`build_skeleton`).
        target_modules: attention-qv, attention, all-linear, or module names.

    Returns:
        Names of the modules as PEFT matches them, by the ends of their paths; sorted.

    Raises:
        ModelError: If the base has none of them, or lacks one that was named.
    """
    present = linear_names(model)
    if isinstance(target_modules, list):
        missing = [name for name in target_modules if not _has_linear(model, name)]
        if missing:
            raise ModelError(
                f"lora.target_modules: the base has no linear module {missing[0]!r}; it has {', '.join(present)}. "
                "Name some of these, or a preset: attention-qv, attention, all-linear."
            )
        return sorted(target_modules)
    if target_modules == "all-linear":
        return present
    fused = [name for name in FUSED_ATTENTION if name in present]
    wanted = QUERY_VALUE if target_modules == "attention-qv" else ATTENTION
    found = [name for name in wanted if name in present]
    if fused:
        # A fused projection cannot be split into q and v: the whole of it is adapted.
        found = (
            fused
            if target_modules == "attention-qv"
            else [*fused, *(name for name in FUSED_OUTPUT if _has_linear(model, name))]
        )
    if not found:
        raise ModelError(
            f"lora.target_modules: {target_modules} finds no attention projection it knows in this base; "
            f"its linear modules are {', '.join(present)}. Name some of these."
        )
    return sorted(set(found))


def build_skeleton(model: Model) -> PreTrainedModel:
    """The base's architecture without weights, on torch's meta device.

    Raises:
        ModelError: If it cannot be built from the base's config.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    name = resolve_model_name(model.name)
    try:
        # Whatever attention its config asks for: nothing is computed here.
        config = AutoConfig.from_pretrained(
            name, revision=model.revision, trust_remote_code=model.trust_remote_code, attn_implementation="eager"
        )
        own = (getattr(config, "auto_map", None) or {}).get("AutoModelForCausalLM")
        skeleton: PreTrainedModel
        with torch.device("meta"):
            if own and model.trust_remote_code:
                # transformers 5.23: from_config would take the code of main, and keep it for the load that follows.
                skeleton = get_class_from_dynamic_module(own, name, revision=model.revision)(config)
            else:
                skeleton = AutoModelForCausalLM.from_config(config, trust_remote_code=model.trust_remote_code)
    except Exception as error:
        raise cannot_load("model.name", name, error) from None
    return skeleton


def check_targets(skeleton: PreTrainedModel, choices: list[Lora]) -> None:
    """Resolves target modules and modules to save against the base's architecture.

    Args:
        skeleton: The base, with or without weights.
        choices: All adapters a sweep can train, as far as their modules differ.

    Raises:
        ModelError: If the base lacks one of them.
    """
    names = {path.rsplit(".", 1)[-1] for path, _ in skeleton.named_modules() if path}
    for choice in choices:
        resolve_targets(skeleton, choice.target_modules)
        for saved in choice.modules_to_save or ():
            if saved.rsplit(".", 1)[-1] not in names:
                raise ModelError(
                    f"lora.modules_to_save: the base has no module {saved!r}; it has {', '.join(sorted(names))}. "
                    "Name some of these, or drop it."
                )


def _has_linear(model: PreTrainedModel, name: str) -> bool:
    return any(
        is_linear(module) and (path == name or path.endswith(f".{name}")) for path, module in model.named_modules()
    )
