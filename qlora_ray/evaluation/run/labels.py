"""The rows of an evaluation with the labels that the adapter's auxiliary heads are scored on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from qlora_ray.config.heads import Head
from qlora_ray.config.schema import SweepConfig
from qlora_ray.data import PreparedData, prepare_data
from qlora_ray.errors import DataError
from qlora_ray.modeling.auxiliary_heads import TrainedHead

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def prepare_labelled(
    config: SweepConfig, heads: Sequence[TrainedHead], tokenizer: PreTrainedTokenizerBase
) -> tuple[PreparedData, Mapping[str, Head], list[str]]:
    """The tokenized rows, with labels by the numbers that the heads know; by which heads; and what to know of them.

    As the config says, so that a sweep's rows are found to be the same; where that gives other classes, the heads' own
    columns and classes count. Rows without such columns are evaluated without heads, which is said.

    Args:
        config: What the evaluation goes by.
        heads: Of the adapter.
        tokenizer: The one that rows go through.

    Raises:
        DataError: If the data cannot be prepared without heads either.
    """

    def prepare(asked: Mapping[str, Head]) -> PreparedData:
        return prepare_data(config.data, tokenizer=tokenizer, data_seed=config.training.data_seed, heads=asked)

    def try_labels(asked: Mapping[str, Head]) -> tuple[PreparedData, Mapping[str, Head], str | None]:
        try:
            return prepare(asked), asked, None
        except DataError as error:
            if not asked or not str(error).startswith("heads."):
                raise
            return prepare({}), {}, str(error)

    prepared, used, problem = try_labels(config.heads)
    own = {head.spec.name: head.spec for head in heads}
    if any(tuple(prepared.report.classes.get(name, ())) != spec.classes for name, spec in own.items()):
        prepared, used, problem = try_labels({name: Head.model_validate(spec.describe()) for name, spec in own.items()})
    return prepared, used, [f"heads are not scored: {problem}"] if problem is not None and own else []
