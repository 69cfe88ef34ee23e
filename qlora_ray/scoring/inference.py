"""How evaluation runs a model: without gradients, in a known mode and precision, in batches that fit the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from qlora_ray.config.schema import Precision
from qlora_ray.errors import ModelError
from qlora_ray.modeling.device_memory import is_out_of_memory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

Result = TypeVar("Result")
# Has the rows of the forward passes of a block belong to these models: one number for each row, in rising order, or a
# single one for however many rows.
Route = Callable[[Sequence[int]], AbstractContextManager[None]]


def one_model(models: Sequence[int]) -> AbstractContextManager[None]:
    """The route where all rows are one model's: nothing to do."""
    return nullcontext()


def computing_in(precision: Precision, *, device_type: str) -> torch.autocast:
    """Returns the autocast that trials are trained and evaluated under: none in fp32.

    Args:
        precision: What is computed in.
        device_type: `cuda` or `cpu`.
    """
    dtype = AUTOCAST_DTYPES.get(precision)
    return torch.autocast(device_type, dtype=dtype, enabled=dtype is not None)


@contextmanager
def evaluating(model: nn.Module, *, precision: Precision) -> Iterator[None]:
    """Runs the block in eval mode, without gradients and in `precision`, and puts every module's mode back.

    `torch.inference_mode` is not used, since tensors that modules keep from it (rotary caches) cannot take part in
    later training.
    """
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), computing_in(precision, device_type=input_device(model).type):
            yield
    finally:
        for module, was_training in training.items():
            module.training = was_training


def input_device(model: Any) -> torch.device:
    """Returns the device that token ids must be on: the embedding's, also where layers are spread over devices."""
    embeddings = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    weight = getattr(embeddings, "weight", None)
    return weight.device if isinstance(weight, torch.Tensor) else next(model.parameters()).device


def pad_token_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """Returns the id that fills short rows: the pad token, else the end token.

    Raises:
        ModelError: If the tokenizer has neither.
    """
    found = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    if not isinstance(found, int):
        raise ModelError(
            f"evaluation: the tokenizer must have a pad or an end token, got {type(tokenizer).__name__} with neither. "
            "Set tokenizer.pad_token."
        )
    return found


def map_batches(
    rows: Sequence[int], run: Callable[[Sequence[int]], Result], *, batch_size: int
) -> Iterator[tuple[Sequence[int], Result]]:
    """Yields each batch of `rows` with `run(batch)`; a batch that does not fit the device is halved and tried again.

    Once halved, batches stay small: rows should come with the longest first, so that halving happens early.

    Args:
        rows: The numbers of the rows that are batched, in this order.
        run: Computes a batch of them.
        batch_size: Rows of the first batch.

    Raises:
        RuntimeError, MemoryError: If one row alone does not fit the device (`device_memory.is_out_of_memory`).
    """
    start, size = 0, batch_size
    while start < len(rows):
        batch = rows[start : start + size]
        try:
            result = run(batch)
        except (RuntimeError, MemoryError) as error:
            if len(batch) == 1 or not is_out_of_memory(error):
                raise
        else:
            start += len(batch)
            yield batch, result
            continue
        # Outside the handler: there the traceback would still hold the failed batch's tensors.
        size = len(batch) // 2
        torch.cuda.empty_cache()


def longest_first(sequences: Sequence[Sequence[int]], rows: Sequence[int]) -> list[int]:
    """Returns `rows` by falling length of `sequences[row]`, so that a batch pads little; ties keep their order."""
    return sorted(rows, key=lambda row: -len(sequences[row]))
