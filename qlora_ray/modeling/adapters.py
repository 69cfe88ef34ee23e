"""A LoRA adapter on a base: attached, counted, and taken off again without a trace."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from qlora_ray.config.schema import Lora
from qlora_ray.errors import ModelError, first_line
from qlora_ray.formats import list_first, plural
from qlora_ray.modeling.adapter_patterns import check_patterns
from qlora_ray.modeling.identity import read_adapter
from qlora_ray.modeling.loading import LoadedBase
from qlora_ray.modeling.targets import resolve_targets

if TYPE_CHECKING:
    from peft import PeftModel


def attach_adapter(base: LoadedBase, lora: Lora, *, seed: int) -> PeftModel:
    """Puts a fresh LoRA adapter on the base and returns the PEFT model.

    A is drawn by PEFT's own distribution, B is zero, and all adapter weights are fp32.

    Args:
        base: The frozen base, which is changed in place until `detach_adapter`.
        lora: Rank, alpha, dropout and target modules.
        seed: Of the draw of A. torch's global generator is set to it.

    Raises:
        ModelError: If the base lacks a target module.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    alpha = lora.resolved_alpha
    config = LoraConfig(
        r=lora.r,
        # PEFT types alpha as an int, and readers of its file may; a fraction is passed on as it is.
        lora_alpha=cast(int, int(alpha) if alpha.is_integer() else alpha),
        lora_dropout=lora.lora_dropout,
        target_modules=resolve_targets(base.model, lora.target_modules),
        bias=lora.bias,
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
        modules_to_save=lora.modules_to_save,
        task_type="CAUSAL_LM",
        # The base's: what PEFT's Auto classes load the adapter on.
        revision=base.revision,
    )
    torch.manual_seed(seed)
    try:
        model = get_peft_model(base.model, config)
        for parameter in model.parameters():
            if parameter.requires_grad:
                # fp16 gradients cannot be unscaled, and bf16 weights lose small updates: adapters train in fp32.
                parameter.data = parameter.data.float()
    except BaseException as error:
        # Out of memory halfway leaves layers behind, and the next adapter would be put on top of them.
        _strip(base)
        if isinstance(error, ValueError):
            raise ModelError(f"lora: PEFT cannot attach this adapter: {first_line(error)}") from None
        raise
    return model


def detach_adapter(base: LoadedBase) -> None:
    """Takes the adapter off; the base is as it was before `attach_adapter`."""
    _strip(base)


@contextmanager
def saved_adapter(base: LoadedBase, folder: Path) -> Iterator[PeftModel]:
    """The base with an adapter from disk on it, as plain PEFT loads it, for the length of the block.

    Raises:
        ModelError: If it names modules by patterns that cannot be matched, or not within a limit, or has tensors that
            the base has no place for, which PEFT would pass over.
    """
    from peft import PeftModel

    names = [name for name, _ in base.model.named_modules()]
    check_patterns(read_adapter(folder).config, names, where=str(folder))
    try:
        model = PeftModel.from_pretrained(base.model, str(folder), is_trainable=False)
        _check_places(model, folder)
        yield model
    finally:
        detach_adapter(base)


def _check_places(model: PeftModel, folder: Path) -> None:
    """Raises ModelError if a tensor of the adapter's file has no place in the model that PEFT has made.

    PEFT is asked, which knows files of older layouts by other names.
    """
    from peft import set_peft_model_state_dict
    from peft.utils import load_peft_weights

    found: Any = set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"))
    unplaced = sorted(found.unexpected_keys)
    if unplaced:
        raise ModelError(
            f"{folder}: must be an adapter of this base ({model.config.name_or_path}), got "
            f"{plural(len(unplaced), 'tensor')} that it has no place for: {list_first(unplaced, limit=2)}. "
            "Name its own base with --set model.name=."
        )


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Writes the adapter in PEFT's own format."""
    logging.getLogger("peft").setLevel(logging.ERROR)
    model.save_pretrained(str(folder), save_embedding_layers=False)


def count_parameters(model: PeftModel) -> tuple[int, int]:
    """Trainable parameters, and all parameters with packed 4-bit weights counted one by one (PEFT's count)."""
    return model.get_nb_trainable_parameters()


def _strip(base: LoadedBase) -> None:
    """Puts every original module back where PEFT set one of its own.

    PEFT 0.21's `unload` would leave a module of modules_to_save as its trained copy.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    originals = {
        name: module.original_module if isinstance(module, ModulesToSaveWrapper) else module.get_base_layer()
        for name, module in base.model.named_modules()
        if isinstance(module, BaseTunerLayer | ModulesToSaveWrapper)
    }
    for name, original in originals.items():
        base.model.set_submodule(name, original)
    for attribute in ("peft_config", "_hf_peft_config_loaded"):
        base.model.__dict__.pop(attribute, None)
