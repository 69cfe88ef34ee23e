"""A split's rows as token ids: Arrow columns, in memory or mapped from files, read row by row.

Mapped rows cost no memory of their own: all processes of a node share the pages of the files.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, overload

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

COLUMNS = ("input_ids", "completion_mask", "prompt_ids", "references", "alternatives")


def arrow_schema() -> pa.Schema:
    """The columns of a split."""
    import pyarrow as pa

    types = (pa.list_(pa.int32()), pa.list_(pa.int8()), pa.list_(pa.int32()), pa.string(), pa.list_(pa.string()))
    return pa.schema(list(zip(COLUMNS, types, strict=True)))


class TokenRows(Sequence[list[int]]):
    """A column of lists of numbers: `rows[3]` is a list, `rows[:3]` such a column again.

    Args:
        column: Lists of one integer type, without nulls.
    """

    def __init__(self, column: pa.ChunkedArray) -> None:
        self._column = column
        chunks: list[Any] = [chunk for chunk in column.chunks if len(chunk)]
        self._offsets: list[NDArray[np.int32]] = [chunk.offsets.to_numpy() for chunk in chunks]
        self._values: list[NDArray[Any]] = [chunk.values.to_numpy() for chunk in chunks]
        # The first row of each chunk.
        self._starts: list[int] = np.cumsum([0, *map(len, chunks)])[:-1].tolist()

    def __len__(self) -> int:
        return len(self._column)

    @overload
    def __getitem__(self, row: int) -> list[int]: ...
    @overload
    def __getitem__(self, row: slice) -> TokenRows: ...
    def __getitem__(self, row: int | slice) -> list[int] | TokenRows:
        if isinstance(row, slice):
            return TokenRows(_slice(self._column, row))
        tokens: list[int] = self.array(row).tolist()
        return tokens

    def __iter__(self) -> Iterator[list[int]]:
        for offsets, values in zip(self._offsets, self._values, strict=True):
            bounds = offsets.tolist()
            for start, end in pairwise(bounds):
                yield values[start:end].tolist()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(self) != len(other):
            return False
        return all(own == list(theirs) for own, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def array(self, row: int) -> NDArray[Any]:
        """One row as the array that lies in the column: nothing is copied."""
        row = range(len(self))[row]
        chunk = bisect_right(self._starts, row) - 1
        offsets, at = self._offsets[chunk], row - self._starts[chunk]
        return self._values[chunk][offsets[at] : offsets[at + 1]]

    @property
    def lengths(self) -> NDArray[np.int32]:
        """The length of each row; no value is read."""
        return np.concatenate([np.zeros(0, dtype=np.int32), *map(np.diff, self._offsets)])

    @property
    def total(self) -> int:
        """The sum of all values."""
        return sum(
            int(values[offsets[0] : offsets[-1]].sum(dtype=np.int64))
            for offsets, values in zip(self._offsets, self._values, strict=True)
        )


class TextRows(Sequence[str]):
    """A column of texts, as `TokenRows` is one of lists."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        self._column = column

    @classmethod
    def joined(cls, parts: Sequence[TextRows]) -> TextRows:
        """The rows of one after those of another."""
        import pyarrow as pa

        return cls(pa.chunked_array([chunk for part in parts for chunk in part._column.chunks], pa.string()))

    def __len__(self) -> int:
        return len(self._column)

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> TextRows: ...
    def __getitem__(self, row: int | slice) -> str | TextRows:
        if isinstance(row, slice):
            return TextRows(_slice(self._column, row))
        return str(self._column[range(len(self))[row]].as_py())

    def __iter__(self) -> Iterator[str]:
        for chunk in self._column.chunks:
            for text in chunk:
                yield str(text.as_py())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


class TextListRows(Sequence[tuple[str, ...]]):
    """A column of lists of texts, as `TokenRows` is one of lists of numbers."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    @overload
    def __getitem__(self, row: int) -> tuple[str, ...]: ...
    @overload
    def __getitem__(self, row: slice) -> TextListRows: ...
    def __getitem__(self, row: int | slice) -> tuple[str, ...] | TextListRows:
        if isinstance(row, slice):
            return TextListRows(_slice(self._column, row))
        return tuple(self._column[range(len(self))[row]].as_py())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == [tuple(texts) for texts in other]

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True)
class TokenizedSplit:
    """One split's rows as token ids, in the columns of an Arrow table.

    `completion_mask` is 1 where the token is trained: answers and their end tokens. `prompt_ids` is everything before
    the last answer, tools and generation prompt included and never cut; `references` is that answer as text, and
    `alternatives` are other answers that are as right. All three are empty for plain text. `input_ids` starts with
    `prompt_ids` unless it was cut inside them.

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
    ) -> TokenizedSplit:
        """A split of rows that are at hand; all columns have one entry per row, None stands for no alternatives."""
        import pyarrow as pa

        others: Sequence[Sequence[str]] = [()] * len(references) if alternatives is None else alternatives
        columns = (input_ids, completion_mask, prompt_ids, references, others)
        schema = arrow_schema()
        arrays = [pa.array(column, type=type_) for column, type_ in zip(columns, schema.types, strict=True)]
        return cls(name, pa.Table.from_arrays(arrays, schema=schema))

    @classmethod
    def joined(cls, name: str, parts: Sequence[TokenizedSplit]) -> TokenizedSplit:
        """The rows of all parts, one part after the other; nothing is copied."""
        import pyarrow as pa

        return cls(name, pa.concat_tables([arrow_schema().empty_table(), *(part.table for part in parts)]))

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

    def take(self, rows: Sequence[int]) -> TokenizedSplit:
        """Returns some of its rows, in the order asked for, in memory.

        Not by the table's own `take`, which first copies all chunks of a column into one.
        """
        import pyarrow as pa

        columns = (self.input_ids, self.completion_mask, self.prompt_ids)
        lists = [_gather(column, rows, field.type) for column, field in zip(columns, arrow_schema(), strict=False)]
        texts = pa.array([self.references[row] for row in rows], pa.string())
        others = pa.array([self.alternatives[row] for row in rows], pa.list_(pa.string()))
        return TokenizedSplit(self.name, pa.Table.from_arrays([*lists, texts, others], schema=arrow_schema()))

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


def _slice(column: pa.ChunkedArray, rows: slice) -> pa.ChunkedArray:
    start, stop, step = rows.indices(len(column))
    if step != 1:
        return column.take(list(range(start, stop, step)))
    return column.slice(start, max(0, stop - start))
