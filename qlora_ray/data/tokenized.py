"""A split's rows as token ids: Arrow columns, in memory or mapped from files, read row by row.

Mapped rows cost no memory of their own: all processes of a node share the pages of the files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from qlora_ray.data.columns import TextListRows, TextRows, TokenRows

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

# Of the column that holds the labels of an auxiliary head.
LABEL_PREFIX = "label:"
COLUMNS = ("input_ids", "completion_mask", "prompt_ids", "references", "alternatives")


def arrow_schema(heads: Sequence[str] = ()) -> pa.Schema:
    """The columns of a split, one more for the labels of each auxiliary head."""
    import pyarrow as pa

    types = (pa.list_(pa.int32()), pa.list_(pa.int8()), pa.list_(pa.int32()), pa.string(), pa.list_(pa.string()))
    labels = [(LABEL_PREFIX + head, pa.int32()) for head in heads]
    return pa.schema([*zip(COLUMNS, types, strict=True), *labels])


@dataclass(frozen=True)
class TokenizedSplit:
    """One split's rows as token ids, in the columns of an Arrow table.

    `completion_mask` is 1 where the token is trained: answers and their end tokens. `prompt_ids` is everything before
    the last answer, tools and generation prompt included and never cut; `references` is that answer as text, and
    `alternatives` are other answers that are as right. All three are empty for plain text. `input_ids` starts with
    `prompt_ids` unless it was cut inside them. Each auxiliary head has a column of labels.

    Attributes:
        table: Of the columns `arrow_schema`.
    """

    name: str
    table: pa.Table

    @classmethod
    def of(
        cls,
        name: str,
        input_ids: Sequence[Sequence[int]],
        completion_mask: Sequence[Sequence[int]],
        prompt_ids: Sequence[Sequence[int]],
        references: Sequence[str],
        alternatives: Sequence[Sequence[str]] | None = None,
        labels: Mapping[str, Sequence[int]] | None = None,
    ) -> TokenizedSplit:
        """A split of rows that are at hand; all columns have one entry per row, None stands for no alternatives.

        `labels` are by auxiliary head.
        """
        import pyarrow as pa

        others: Sequence[Sequence[str]] = [()] * len(references) if alternatives is None else alternatives
        columns = (input_ids, completion_mask, prompt_ids, references, others, *(labels or {}).values())
        schema = arrow_schema(tuple(labels or ()))
        arrays = [pa.array(column, type=type_) for column, type_ in zip(columns, schema.types, strict=True)]
        return cls(name, pa.Table.from_arrays(arrays, schema=schema))

    @classmethod
    def joined(cls, name: str, parts: Sequence[TokenizedSplit]) -> TokenizedSplit:
        """The rows of all parts, one part after the other; nothing is copied."""
        import pyarrow as pa

        empty = [] if parts else [arrow_schema().empty_table()]
        return cls(name, pa.concat_tables([*empty, *(part.table for part in parts)]))

    def __reduce__(self) -> tuple[Any, ...]:
        # Without the views of the columns, which point into this process's memory.
        return TokenizedSplit, (self.name, self.table)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @cached_property
    def input_ids(self) -> TokenRows:
        """Prompt and answer as tokens."""
        return TokenRows(self.table["input_ids"])

    @cached_property
    def completion_mask(self) -> TokenRows:
        """1 where the token counts in the loss, 0 elsewhere; as long as `input_ids`."""
        return TokenRows(self.table["completion_mask"])

    @cached_property
    def prompt_ids(self) -> TokenRows:
        """The tokens that generation starts from."""
        return TokenRows(self.table["prompt_ids"])

    @cached_property
    def references(self) -> TextRows:
        """The expected answers, as text."""
        return TextRows(self.table["references"])

    @cached_property
    def alternatives(self) -> TextListRows:
        """Other answers that are as right as the reference."""
        return TextListRows(self.table["alternatives"])

    @property
    def heads(self) -> list[str]:
        """The auxiliary heads that its rows have labels for."""
        names: list[str] = self.table.column_names
        return [name.removeprefix(LABEL_PREFIX) for name in names if name.startswith(LABEL_PREFIX)]

    def labels(self, head: str) -> NDArray[np.int32]:
        """The number of each row's class, -1 where it has none."""
        found: NDArray[np.int32] = self.table[LABEL_PREFIX + head].to_numpy()
        return found

    def take(self, rows: Sequence[int]) -> TokenizedSplit:
        """Returns some of its rows, in the order asked for, in memory.

        Not by the table's own `take`, which first copies all chunks of a column into one.
        """
        import pyarrow as pa

        columns = (self.input_ids, self.completion_mask, self.prompt_ids)
        lists = [_gather(column, rows, field.type) for column, field in zip(columns, arrow_schema(), strict=False)]
        texts = pa.array([self.references[row] for row in rows], pa.string())
        others = pa.array([self.alternatives[row] for row in rows], pa.list_(pa.string()))
        labels = [pa.array(self.labels(head)[list(rows)], pa.int32()) for head in self.heads]
        schema = arrow_schema(self.heads)
        return TokenizedSplit(self.name, pa.Table.from_arrays([*lists, texts, others, *labels], schema=schema))

    def first(self, num_rows: int) -> TokenizedSplit:
        """Returns its first rows."""
        return TokenizedSplit(self.name, self.table.slice(0, num_rows))

    @property
    def num_tokens(self) -> int:
        """Tokens of all rows."""
        return int(self.input_ids.lengths.sum(dtype=np.int64))

    @property
    def num_completion_tokens(self) -> int:
        """Trained tokens of all rows."""
        return self.completion_mask.total


def _gather(column: TokenRows, rows: Sequence[int], type_: pa.ListType) -> pa.ListArray:
    import pyarrow as pa

    arrays = [column.array(row) for row in rows]
    offsets = np.cumsum([0, *map(len, arrays)], dtype=np.int32)
    values = np.concatenate([np.zeros(0, dtype=type_.value_type.to_pandas_dtype()), *arrays])
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values), type=type_)
