"""A base that answers, bare or with a saved adapter: on a CPU by layers that hold 4-bit weights dequantized.

bitsandbytes dequantizes every weight for every token that is generated. What it makes is held instead wherever that
gives the same numbers; where it does not, transformers and PEFT compute as they load.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlora_ray.config.schema import Lora
from qlora_ray.hardware.packing import HELD_METHODS, NARROW_WIDTH
from qlora_ray.modeling.adapters import saved_adapter
from qlora_ray.modeling.identity import read_adapter, read_shapes
from qlora_ray.modeling.loading import LoadedBase
from qlora_ray.modeling.packing import find_packing_problem

if TYPE_CHECKING:
    from qlora_ray.modeling.multi_lora.wrapped_base import WrappedBase

# Ours: of free memory, what the dequantized copy of a 4-bit base may take, so that caches and logits find room too.
DENSE_SHARE = 0.5
# What PEFT's own layers do and packed layers do not, beside what cannot be trained in a pack (adapter_config.json, peft
# 0.21).
PEFT_ONLY = (
    "rank_pattern",
    "alpha_pattern",
    "lora_bias",
    "fan_in_fan_out",
    "target_parameters",
    "use_qalora",
)
# Values of init_lora_weights that leave the base as it is; the others take a part of its weights into A and B when PEFT
# loads the adapter (peft 0.21, tuners/lora/layer.py).
KEEPING_INITS = (True, False, None, "gaussian", "eva", "orthogonal")


def changes_base(adapter: Path) -> bool:
    """Whether loading this adapter changes the base's own weights or layers, so that taking it off leaves another base.

    Biases, tokens and embeddings are trained in place, and some ways of initializing take a part out of the base's
    weights.
    """
    config = read_adapter(adapter).config
    copied = set(config.get("modules_to_save") or [])
    if any("lora_" not in name and not copied & set(name.split(".")) for name in read_shapes(adapter)):
        # Embeddings that were resized in training, which PEFT writes into the base.
        return True
    keeps_weights = config.get("init_lora_weights", True) in KEEPING_INITS and config.get("bias", "none") == "none"
    return not keeps_weights or bool(config.get("trainable_token_indices") or config.get("layer_replication"))


def hold_dequantized(base: LoadedBase, adapter: Path | None, *, free_bytes: int) -> WrappedBase | None:
    """The base with layers that hold 4-bit weights dequantized, where that is the same and faster; else None.

    Measured on the embedded base: five times as fast.

    Args:
        base: The base, without an adapter on it.
        adapter: The adapter that will be on it; None: none.
        free_bytes: Memory of the device that the copy may take a part of.
    """
    import bitsandbytes

    if base.device != "cpu" or base.quantization.method not in HELD_METHODS:
        return None
    if adapter is not None and (changes_base(adapter) or not _is_packable(adapter)):
        return None
    if find_packing_problem(base.model, _lora_of(adapter)) is not None:
        return None
    quantized = [layer for layer in base.model.modules() if isinstance(layer, bitsandbytes.nn.Linear4bit)]
    num_bytes = sum(4 * layer.in_features * layer.out_features for layer in quantized)
    if num_bytes > DENSE_SHARE * free_bytes:
        return None
    from qlora_ray.modeling.multi_lora.wrapped_base import WrappedBase

    return WrappedBase(base, hold_dequantized=True)


@contextmanager
def with_adapter(base: LoadedBase, adapter: Path | None, wrapped: WrappedBase | None) -> Iterator[Any]:
    """The model that answers, with or without the adapter, for the length of the block.

    Args:
        base: The base, without an adapter on it.
        adapter: The adapter's folder; None: the bare base.
        wrapped: What `hold_dequantized` returned for this base.
    """
    if wrapped is not None:
        from qlora_ray.modeling.multi_lora.adapters import answering

        with answering(wrapped, [adapter]) as route, route([0]):
            yield base.model
    elif adapter is not None:
        with saved_adapter(base, adapter) as model:
            yield model
    else:
        yield base.model


@contextmanager
def few_threads(base: LoadedBase) -> Iterator[None]:
    """One thread for a narrow model on a CPU: it gains little from more, and waits long for one that others hold up."""
    import torch

    before = torch.get_num_threads()
    is_narrow = getattr(base.model.config.get_text_config(), "hidden_size", NARROW_WIDTH) < NARROW_WIDTH
    if base.device == "cpu" and is_narrow:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _is_packable(adapter: Path) -> bool:
    from qlora_ray.modeling.multi_lora.adapters import UNPACKABLE

    config = read_adapter(adapter).config
    return isinstance(config.get("target_modules"), list) and not any(
        config.get(key) for key in (*UNPACKABLE, *PEFT_ONLY)
    )


def _lora_of(adapter: Path | None) -> list[Lora]:
    if adapter is None:
        return []
    facts = read_adapter(adapter)
    return [Lora(r=facts.r, target_modules=sorted(facts.config["target_modules"]))]
