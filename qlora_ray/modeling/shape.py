"""The sizes of a base, counted from the model that transformers builds of it on the meta device."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from qlora_ray.errors import ModelError
from qlora_ray.hardware import ModelShape
from qlora_ray.hardware.stored import StoredQuantization
from qlora_ray.modeling.targets import is_linear, resolve_targets

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

# An MLP's first linears, in widths of its intermediate state: up, or gate and up, which may be one module.
PLAIN, GATED = 1, 2


def count_shape(skeleton: PreTrainedModel, assumed: ModelShape) -> ModelShape:
    """Returns a base's shape with the linears, presets and parameters of its skeleton.

    Args:
        skeleton: The base, with or without weights.
        assumed: Its shape by config.json alone. Returned as it is where the decoder's layers differ from each other, or
            where there are linears outside of them, as in a vision tower: a shape has no place for these.
    """
    import torch

    head = skeleton.get_output_embeddings()
    stacks = [module for module in skeleton.modules() if isinstance(module, torch.nn.ModuleList)]
    layers = next((list(stack) for stack in stacks if len(stack) == assumed.num_layers), [])
    found = [_linears_of(layer) for layer in layers]
    num_linears = sum(module is not head for module in skeleton.modules() if is_linear(module))
    if not layers or any(linears != found[0] for linears in found) or num_linears != sum(map(len, found)):
        return assumed
    tables = {
        # By identity: a head that is tied to the embeddings has the same tensor.
        id(module.weight): module.weight
        for module in skeleton.modules()
        if isinstance(module, torch.nn.Embedding) or module is head
    }
    counted = replace(
        assumed,
        stored=assumed.stored and _count_skipped(skeleton, assumed.stored),
        linears=found[0],
        presets=_find_presets(skeleton, assumed),
        num_embedding_parameters=sum(weight.numel() for weight in tables.values()),
        num_norm_parameters=0,
        num_norms_per_layer=sum(_is_norm(module, assumed.hidden_size) for module in layers[0].modules()),
    )
    num_mlp_tensors = _count_mlp_tensors(counted)
    if num_mlp_tensors is not None:
        counted = replace(counted, num_mlp_tensors=num_mlp_tensors, layout_assumed=False)
    num_parameters = sum(parameter.numel() for parameter in skeleton.parameters())
    return replace(counted, num_norm_parameters=num_parameters - counted.num_parameters)


def _count_skipped(skeleton: PreTrainedModel, stored: StoredQuantization) -> StoredQuantization:
    """With the share of weights that are not quantized; names are matched as transformers matches them."""
    from transformers.quantizers.quantizers_utils import should_convert_module

    head = skeleton.get_output_embeddings()
    sizes = {
        path: module.get_parameter("weight").numel()
        for path, module in skeleton.named_modules()
        if is_linear(module) and module is not head
    }
    skipped = sum(size for path, size in sizes.items() if not should_convert_module(path, list(stored.skipped)))
    return replace(stored, skipped_share=skipped / sum(sizes.values()))


def _count_mlp_tensors(shape: ModelShape) -> int | None:
    """Returns num_mlp_tensors by the widths of what is not attention; None where these are not those of an MLP."""
    if "attention" not in shape.presets:
        return None
    attention = shape.target_linears("attention")
    width = sum(d_out for name, (_, d_out) in shape.linears.items() if name not in attention)
    # One of them leads back to the hidden state.
    num_first, rest = divmod(width - shape.hidden_size, shape.intermediate_size)
    return num_first + 1 if rest == 0 and num_first in (PLAIN, GATED) else None


def _linears_of(layer: torch.nn.Module) -> dict[str, tuple[int, int]]:
    """Returns name -> (in, out): the last name of each linear, with its parent's where two have the same."""
    linears = {path: module for path, module in layer.named_modules() if is_linear(module)}
    count = Counter(path.rpartition(".")[2] for path in linears)
    num_parts = {path: 1 if count[path.rpartition(".")[2]] == 1 else 2 for path in linears}
    return {".".join(path.split(".")[-num_parts[path] :]): _widths(module) for path, module in linears.items()}


def _widths(linear: torch.nn.Module) -> tuple[int, int]:
    """Returns (in, out); transformers' Conv1D has its weight the other way round."""
    weight: torch.Tensor = linear.get_parameter("weight")
    rows, columns = weight.shape
    return (rows, columns) if hasattr(linear, "nx") else (columns, rows)


def _is_norm(module: torch.nn.Module, hidden_size: int) -> bool:
    return getattr(getattr(module, "weight", None), "shape", None) == (hidden_size,)


def _find_presets(skeleton: PreTrainedModel, assumed: ModelShape) -> dict[str, tuple[str, ...]]:
    """Returns the modules of each preset that the base has; one that finds none is an error where it is used."""
    presets = {}
    for preset in assumed.presets:
        try:
            presets[preset] = tuple(resolve_targets(skeleton, preset))
        except ModelError:
            continue
    return presets
