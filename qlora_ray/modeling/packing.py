"""Whether a sweep's trials can share one base in the packed engine, and if not, why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qlora_ray.config.schema import Lora
from qlora_ray.hardware.stored import read_stored
from qlora_ray.modeling.targets import resolve_targets

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# config.json's names of dropout that a model may apply by a function, where no module shows it (transformers 5.23:
# Llama, Qwen, Gemma and Phi-3 pass attention_dropout to the attention function; OPT does so with dropout).
DROPOUT_KEYS = (
    "attention_dropout",
    "attention_probs_dropout_prob",
    "attn_dropout",
    "attn_pdrop",
    "dropout",
    "embd_pdrop",
    "embedding_dropout",
    "hidden_dropout",
    "hidden_dropout_prob",
    "layerdrop",
    "resid_pdrop",
    "residual_dropout",
)


def find_packing_problem(skeleton: PreTrainedModel, choices: list[Lora]) -> str | None:
    """The first reason why these adapters cannot be trained at once on this base, or None.

    Args:
        skeleton: The base, with or without weights.
        choices: All adapters a sweep can train, as far as their modules differ; their targets have been checked.
    """
    problem = _find_base_problem(skeleton)
    if problem:
        return problem
    seen: set[str] = set()
    for choice in choices:
        if choice.use_dora:
            return "lora.use_dora: DoRA trains magnitudes that packed layers do not have"
        if choice.modules_to_save:
            return (
                f"lora.modules_to_save: trials would each train {choice.modules_to_save[0]}, of which packed trials "
                "share one"
            )
        # Corners of a space mostly repeat their targets.
        names = [name for name in resolve_targets(skeleton, choice.target_modules) if name not in seen]
        seen.update(names)
        problem = _find_target_problem(skeleton, names)
        if problem:
            return problem
    return None


def _find_base_problem(skeleton: PreTrainedModel) -> str | None:
    """A body that cannot be run apart from its head, or draws random numbers that all rows would share."""
    from torch import nn

    kind = type(skeleton).__name__
    stored = read_stored(skeleton.config.to_dict())
    if stored is not None and not stored.is_bitsandbytes:
        return f"model.name: the base is stored in {stored.method}, whose layers packed trials cannot share"
    if skeleton.base_model is skeleton or skeleton.get_output_embeddings() is None:
        return f"model.name: {kind} has no body apart from its head, and packed trials share one body"
    words = "is the base's own dropout, whose draws in a pack depend on the neighbours"
    for path, module in skeleton.named_modules():
        if isinstance(module, nn.Dropout) and module.p > 0:
            return f"model.name: {path} (p = {module.p:g}) {words}"
    config: Any = skeleton.config.get_text_config()
    for key in DROPOUT_KEYS:
        rate = getattr(config, key, None)
        if isinstance(rate, int | float) and rate > 0:
            return f"model.name: {key} = {rate:g} in config.json {words}"
    return None


def _find_target_problem(skeleton: PreTrainedModel, names: list[str]) -> str | None:
    """A target that is no linear layer of the body."""
    from torch import nn

    head = skeleton.get_output_embeddings()
    for path, module in skeleton.named_modules():
        if not _is_named(path, names):
            continue
        if module is head:
            return f"lora.target_modules: {path} is the head, which packed trials share"
        if not isinstance(module, nn.Linear):
            return f"lora.target_modules: {path} is a {type(module).__name__}, and only Linear modules are packed"
    return None


def _is_named(path: str, names: list[str]) -> bool:
    """Whether PEFT finds a module by one of these names: whole, or the end of its path."""
    return any(path == name or path.endswith(f".{name}") for name in names)
