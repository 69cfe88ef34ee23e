"""The rows of each split as Examples: kept in memory where they are few, else read again each time they are asked for.

A first pass over a source finds its bad rows and all that must be known of the rows before one is tokenized: how many
they are, and which share a prompt.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qlora_ray.config.heads import Head
from qlora_ray.config.schema import Data
from qlora_ray.data.examples import Example, Turn
from qlora_ray.data.formats import Conversion
from qlora_ray.data.labels import LabelReader, SplitLabels
from qlora_ray.data.sources import Source
from qlora_ray.data.splits import RowChoice, RowKeys

# Of rows, and of the text in their turns: more of either takes longer to render and tokenize on one core than worker
# processes take to start, 20 s.
MAX_KEPT_ROWS = 20_000
MAX_KEPT_CHARACTERS = 32_000_000
TELL_INTERVAL_S = 1.0

Tell = Callable[[str], None]


class SourceExamples:
    """The rows of one source as Examples; making it is the first pass.

    Args:
        source: Where the rows come from.
        choice: Which of them are taken.
        data: The config section `data`: `format`, `columns` and `bad_rows` count.
        heads: The config section `heads`: which labels are read beside the rows.
        tell: Is told how far the first pass is.

    Attributes:
        conversion: The source's format, and what was not taken as it was.
        keys: What tells prompts and rows apart.
        is_text: Whether its rows are plain text.
        labels: Of its rows, for auxiliary heads.
        has_system: Of each row, whether a system prompt of the config is not for it.

    Raises:
        DataError: If the source cannot be read, no format fits, or rows are bad.
    """

    def __init__(self, source: Source, choice: RowChoice, data: Data, *, heads: Mapping[str, Head], tell: Tell) -> None:
        self._source = source
        self._choice = choice
        self._heads = heads
        self.labels = LabelReader(source.name, heads)
        self.conversion = Conversion(source.name, data, labels=self.labels if heads else None)
        self.keys = RowKeys(choice.data_seed)
        self._kept: list[Example] | None = []
        flags = bytearray()
        num_characters = 0
        told_at = time.monotonic()
        for example in self.conversion.convert(source.read(choice)):
            if not flags:
                self.is_text = example.is_text
            self.keys.add(example)
            flags.append(example.is_text or example.turns[0].role == "system")
            num_characters += count_characters(example)
            if self._kept is not None:
                self._kept.append(example)
                if len(self._kept) > MAX_KEPT_ROWS or num_characters > MAX_KEPT_CHARACTERS:
                    self._kept = None
            if time.monotonic() - told_at > TELL_INTERVAL_S:
                told_at = time.monotonic()
                tell(f"reading the data: {len(flags):,} rows of {source.name}")
        self.has_system = np.frombuffer(flags, dtype=bool)

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def is_kept(self) -> bool:
        """Whether all rows are in memory."""
        return self._kept is not None

    def __iter__(self) -> Iterator[Example]:
        if self._kept is not None:
            return iter(self._kept)
        # Labels are read again too: a row with a bad one is left out by it.
        labels = LabelReader(self._source.name, self._heads) if self._heads else None
        again = Conversion(self._source.name, self.conversion.data, labels=labels)
        return again.convert(self._source.read(self._choice))


@dataclass(frozen=True)
class SplitExamples:
    """A split's rows.

    Attributes:
        source: Of which they are.
        rows: Their places in it, rising.
        order: In which the split has them, as places among them; None: as they stand in the source.
        system_prompt: Goes before rows that have no system turn of their own.
        labels: Of the rows, in the order of `rows`; None without auxiliary heads.
    """

    source: SourceExamples
    rows: NDArray[np.int64]
    order: Sequence[int] | None = None
    system_prompt: str | None = None
    labels: SplitLabels | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def read(self) -> Iterator[Example]:
        """Yields them as they stand in the source."""
        wanted = np.zeros(len(self.source), dtype=bool)
        wanted[self.rows] = True
        labels = None if self.labels is None else iter(self.labels.classes.tolist())
        for is_wanted, example in zip(wanted.tolist(), self.source, strict=True):
            if is_wanted:
                found = self._with_system(example)
                yield found if labels is None else dataclasses.replace(found, labels=tuple(next(labels)))

    def in_order(self) -> list[Example]:
        """All of them, in the split's order."""
        examples = list(self.read())
        return examples if self.order is None else [examples[at] for at in self.order]

    @property
    def keys(self) -> RowKeys:
        """Of its rows."""
        return self.source.keys.take(self.rows)

    @property
    def num_without_prompt(self) -> int:
        """Rows that the system prompt is not for."""
        return int(self.source.has_system[self.rows].sum())

    def _with_system(self, example: Example) -> Example:
        if not self.system_prompt or example.is_text or example.turns[0].role == "system":
            return example
        return dataclasses.replace(example, turns=(Turn("system", self.system_prompt), *example.turns))


def count_characters(example: Example) -> int:
    """Of the text in its turns."""
    return sum(len(turn.content) + len(turn.input) + len(turn.reasoning) for turn in example.turns)
