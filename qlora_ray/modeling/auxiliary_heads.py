"""Auxiliary heads: linear classifiers of the last hidden state, what they read of a row, their loss, and their file.

A head is a matrix W [C, D] in fp32, without a bias, as transformers' `...ForSequenceClassification` puts one on a
decoder. It begins at zero: all classes are then equally likely, nothing reaches the adapter before the head has learnt
something, and no random number is drawn that would change the trial's others.

Shapes: B rows of a micro-batch, T tokens, D hidden width, N labelled rows of it, C classes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from qlora_ray.config.heads import Head, Pooling
from qlora_ray.errors import ModelError, first_line
from qlora_ray.runs.paths import HEADS_WEIGHTS

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from peft import PeftModel
    from torch import Tensor

# Of the trainable model; a head's own name may be that of a method of torch's modules, as `type` and `float` are.
MODULE = "auxiliary_heads"
PREFIX = "head_"
# In the file's metadata.
FACTS_KEY = "heads"


@dataclass(frozen=True)
class HeadSpec:
    """One head of a trial.

    Attributes:
        classes: The labels, in the order of their numbers.
        weight: What its loss is multiplied with, above 0.
    """

    name: str
    column: str
    classes: tuple[str, ...]
    pooling: Pooling
    weight: float = 1.0

    @property
    def parameter_name(self) -> str:
        """What its matrix is called among a trial's trainable parameters, in every engine."""
        return f"{MODULE}.{PREFIX}{self.name}"

    def describe(self) -> dict[str, Any]:
        """What it is, for the records: JSON types."""
        return {
            "column": self.column,
            "classes": list(self.classes),
            "pooling": self.pooling,
            "weight": self.weight,
        }


@dataclass(frozen=True)
class TrainedHead:
    """A head with its matrix [C, D], fp32."""

    spec: HeadSpec
    weight_CD: Tensor


def make_specs(heads: Mapping[str, Head], classes: Mapping[str, Sequence[str]]) -> tuple[HeadSpec, ...]:
    """The heads that a trial trains: those whose weight is not 0.

    Args:
        heads: The config section `heads`, with the trial's weights.
        classes: Of each head, from the data's report.
    """
    return tuple(
        HeadSpec(name, head.column, tuple(classes[name]), head.pooling, head.weight)
        for name, head in heads.items()
        if head.weight > 0
    )


@runtime_checkable
class LabelledSplit(Protocol):
    """Tokenized rows that may have labels; all sequences have one entry per row."""

    @property
    def input_ids(self) -> Any:
        """Tokens of the rows, with their `lengths`."""

    @property
    def prompt_ids(self) -> Any:
        """Tokens of the prompts, with their `lengths`."""

    @property
    def heads(self) -> list[str]:
        """The heads that there are labels for."""

    def labels(self, head: str) -> NDArray[np.int32]:
        """The number of each row's class, -1 where it has none."""


class HeadRows:
    """What heads need to know of a split's rows.

    Args:
        split: The rows.
    """

    def __init__(self, split: LabelledSplit) -> None:
        self.lengths: NDArray[np.int32] = split.input_ids.lengths
        # A row that was cut inside its prompt has no more of it than there is.
        self.prompt_lengths = np.minimum(split.prompt_ids.lengths, self.lengths)
        self._labels = {head: split.labels(head) for head in split.heads}

    def labels(self, head: str) -> NDArray[np.int32]:
        """The number of each row's class, -1 where it has none; of a head that is not there, of every row."""
        return self._labels.get(head, np.full(len(self.lengths), -1, dtype=np.int32))

    def count(self, head: str, rows: Sequence[int]) -> int:
        """How many of these rows have a label."""
        return int((self.labels(head)[list(rows)] >= 0).sum())


def pool(hidden_BTD: Tensor, at: Sequence[int], rows: Sequence[int], facts: HeadRows, pooling: Pooling) -> Tensor:
    """One hidden state per row, [N, D]: of the prompt's last token, of the row's, or the mean over all its tokens.

    Args:
        hidden_BTD: The last hidden states of a micro-batch, padded on the right.
        at: Places in the micro-batch of the rows that are pooled.
        rows: Their numbers in the split.
        facts: Of the split.
        pooling: Which hidden state.
    """
    import torch

    device = hidden_BTD.device
    at_N = torch.tensor(list(at), device=device)
    lengths = facts.prompt_lengths if pooling == "prompt" else facts.lengths
    lengths_N = torch.from_numpy(lengths[list(rows)].astype(np.int64)).to(device)
    if pooling != "mean":
        return hidden_BTD[at_N, lengths_N - 1]
    tokens_NT = torch.arange(hidden_BTD.shape[1], device=device) < lengths_N[:, None]
    # What a model makes of padding may be NaN, which a product with 0 would keep.
    kept_NTD = hidden_BTD[at_N].float().masked_fill(~tokens_NT[..., None], 0.0)
    return kept_NTD.sum(1) / lengths_N[:, None]


def score_classes(pooled_ND: Tensor, weight_CD: Tensor) -> Tensor:
    """Each class's logit, [N, C], computed in fp32 whatever the model computes in."""
    import torch

    with torch.autocast(pooled_ND.device.type, enabled=False):
        return pooled_ND.float() @ weight_CD.T


def sum_losses(pooled_ND: Tensor, weight_CD: Tensor, labels: NDArray[np.int32]) -> Tensor:
    """The summed cross-entropy of labelled rows, in nats, fp32."""
    import torch
    import torch.nn.functional as F

    labels_N = torch.from_numpy(labels.astype(np.int64)).to(pooled_ND.device)
    return F.cross_entropy(score_classes(pooled_ND, weight_CD), labels_N, reduction="sum")


def find_hidden_size(causal: Any) -> int:
    """D: what the language model's own head reads."""
    width: int = causal.get_output_embeddings().weight.shape[-1]
    return width


def attach_heads(model: PeftModel, specs: Sequence[HeadSpec]) -> None:
    """Makes heads, at zero, trainable parameters of a model: whatever trains the adapter then trains them."""
    import torch
    from torch import nn

    if not specs:
        return
    causal: Any = model.get_base_model()
    module = nn.Module()
    for spec in specs:
        matrix = torch.zeros(len(spec.classes), find_hidden_size(causal), device=causal.device)
        module.register_parameter(PREFIX + spec.name, nn.Parameter(matrix))
    model.add_module(MODULE, module)


def attached_heads(model: PeftModel, specs: Sequence[HeadSpec]) -> list[TrainedHead]:
    """The heads that `attach_heads` put on a model, as they are now."""
    return [TrainedHead(spec, model.get_parameter(spec.parameter_name)) for spec in specs]


def save_heads(heads: Sequence[TrainedHead], folder: Path) -> None:
    """Writes the heads beside an adapter; nothing where there are none."""
    from safetensors.torch import save_file

    if not heads:
        return
    facts = {head.spec.name: head.spec.describe() for head in heads}
    save_file(
        {f"{head.spec.name}.weight": head.weight_CD.detach().float().cpu().contiguous() for head in heads},
        folder / HEADS_WEIGHTS,
        metadata={"format": "pt", FACTS_KEY: json.dumps(facts)},
    )


def load_heads(folder: Path, *, device: str = "cpu", hidden_size: int | None = None) -> list[TrainedHead]:
    """The heads that lie beside an adapter; none where there is no file of them.

    Args:
        folder: The adapter's.
        device: Where the matrices are to be.
        hidden_size: Width of the base whose hidden states they are to read; None: not known.

    Raises:
        ModelError: If the file is damaged, does not say what its matrices are, or is of another base.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / HEADS_WEIGHTS
    if not path.is_file():
        return []
    try:
        with safe_open(path, framework="pt", device=device) as file:
            facts = json.loads((file.metadata() or {})[FACTS_KEY])
            heads = [_read_head(name, values, file.get_tensor(f"{name}.weight")) for name, values in facts.items()]
    except (OSError, SafetensorError, LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ModelError(
            f"{path}: must hold auxiliary heads with their classes in its metadata, got {first_line(error)}. Copy the "
            "file again, or take it away to go on without heads."
        ) from None
    for head in heads:
        width = head.weight_CD.shape[1]
        if hidden_size is not None and width != hidden_size:
            raise ModelError(
                f"{path}: heads must read hidden states as wide as the base's {hidden_size}, got {width} in head "
                f"{head.spec.name}. Name the base that they were trained on."
            )
    return heads


def _read_head(name: str, values: Any, weight_CD: Tensor) -> TrainedHead:
    # The config's own rules for what a head may say of itself.
    head = Head.model_validate({key: values[key] for key in ("column", "classes", "pooling", "weight")})
    if weight_CD.ndim != 2 or len(weight_CD) != len(head.classes):
        raise ValueError(f"{len(head.classes)} classes of head {name} and a matrix of {tuple(weight_CD.shape)}")
    return TrainedHead(HeadSpec(name, head.column, tuple(head.classes), head.pooling, head.weight), weight_CD.float())
