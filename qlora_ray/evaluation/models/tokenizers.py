"""Which tokenizer the rows of an evaluation go through, and a base whose vocabulary an adapter has grown."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlora_ray.errors import ModelError
from qlora_ray.evaluation.target.target import Target
from qlora_ray.formats import list_first, plural
from qlora_ray.modeling.identity import read_shapes
from qlora_ray.modeling.loading import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What an adapter's folder has where a tokenizer was saved into it.
TOKENIZER_CONFIG = "tokenizer_config.json"
# It is a folder's, and code that came with an adapter does not run because its base's may.
OWN = {"revision": None, "trust_remote_code": False}


def choose_tokenizer(target: Target, base: PreTrainedTokenizerBase) -> tuple[PreTrainedTokenizerBase, list[str]]:
    """Returns the tokenizer that all rows go through, and what to know of it.

    Other trainers save one beside the adapter: with the chat template, the end token and the tokens that it was trained
    with. Where it differs from the base's it is the one; rows are tokenized once, so the base is asked by it too.

    Args:
        target: What is evaluated.
        base: The base's own tokenizer.

    Raises:
        ModelError: If the adapter's tokenizer gives the base's tokens other ids.
    """
    folder = target.adapter
    if folder is None or not (folder / TOKENIZER_CONFIG).is_file():
        return base, []
    try:
        own = load_tokenizer(target.config.model.model_copy(update=OWN | {"name": str(folder)}))
    except ModelError as error:
        return base, [f"the base's tokenizer is used, the one beside the adapter cannot be loaded: {error}"]
    ids = base.get_vocab()
    moved = sorted(token for token, number in own.get_vocab().items() if ids.get(token, number) != number)
    if moved:
        raise ModelError(
            f"{folder}: the tokenizer beside the adapter must give the base's tokens their ids, got "
            f"{own.get_vocab()[moved[0]]} for {moved[0]!r}, which is {ids[moved[0]]} in {base.name_or_path} "
            f"({plural(len(moved), 'token')} in all). Name the adapter's own base with --set model.name=."
        )
    differs = _list_differences(own, base)
    if not differs:
        return base, []
    return own, [
        f"all prompts go through the tokenizer beside the adapter, which has {' and '.join(differs)} than the base's"
    ]


def _list_differences(own: PreTrainedTokenizerBase, base: PreTrainedTokenizerBase) -> list[str]:
    found = []
    if own.chat_template != base.chat_template:
        found.append("another chat template")
    if own.eos_token != base.eos_token:
        found.append(f"another end token ({own.eos_token} for {base.eos_token})")
    if own.bos_token != base.bos_token:
        found.append(f"another begin token ({own.bos_token} for {base.bos_token})")
    new = sorted(own.get_vocab().keys() - base.get_vocab().keys())
    if new:
        found.append(f"{plural(len(new), 'token')} more ({list_first(new)})")
    return found


def grow_vocabulary(model: Any, adapter: Path | None, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Gives a base as many embeddings as its adapter was trained with, and returns how in words; None if it has them.

    New ones are the mean of the base's own, about which transformers draws them before training; an adapter that was
    saved with its embeddings brings the trained ones.

    Args:
        model: The base, changed in place.
        adapter: The adapter's folder.
        tokenizer: The one that rows go through.
    """
    import torch

    embedding = model.get_input_embeddings().weight
    num_own = embedding.shape[0]
    saved = {shape[0] for name, shape in _saved_embeddings(model, adapter).items()}
    num_wanted = max(saved, default=max(num_own, len(tokenizer)))
    if num_wanted == num_own:
        return None
    layers = [layer for layer in (model.get_input_embeddings(), model.get_output_embeddings()) if layer is not None]
    means = [layer.weight[: min(num_own, num_wanted)].float().mean(0) for layer in layers]
    model.resize_token_embeddings(num_wanted, mean_resizing=False)
    with torch.no_grad():
        for layer, mean in zip((model.get_input_embeddings(), model.get_output_embeddings()), means, strict=False):
            layer.weight[num_own:] = mean.to(layer.weight.dtype)
    model.requires_grad_(False)
    source = "which the adapter brings" if saved else "the mean of its own, as the adapter holds none"
    return f"{num_wanted} embeddings for the base's {num_own}, {source}"


def _saved_embeddings(model: Any, adapter: Path | None) -> dict[str, tuple[int, ...]]:
    """Shapes of the base's embeddings and head in an adapter's file, as PEFT saves them where they were resized."""
    if adapter is None:
        return {}
    layers = [layer for layer in (model.get_input_embeddings(), model.get_output_embeddings()) if layer is not None]
    names = [name for name, module in model.named_modules() if any(module is layer for layer in layers)]
    endings = tuple(f".{name}{part}.weight" for name in names for part in ("", ".base_layer"))
    return {name: shape for name, shape in read_shapes(adapter).items() if name.endswith(endings)}
