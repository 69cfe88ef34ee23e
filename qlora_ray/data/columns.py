"""Arrow columns that are read row by row, as lists are."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray


Value = TypeVar("Value")


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


class _ScalarRows(Sequence[Value]):
    """A column whose rows are read from Arrow one by one."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        self._column = column

    def _read(self, scalar: pa.Scalar) -> Value:
        """One row's value."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self._column)

    @overload
    def __getitem__(self, row: int) -> Value: ...
    @overload
    def __getitem__(self, row: slice) -> Self: ...
    def __getitem__(self, row: int | slice) -> Value | Self:
        if isinstance(row, slice):
            return type(self)(_slice(self._column, row))
        return self._read(self._column[range(len(self))[row]])

    def __iter__(self) -> Iterator[Value]:
        for chunk in self._column.chunks:
            for scalar in chunk:
                yield self._read(scalar)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


class TextRows(_ScalarRows[str]):
    """A column of texts, as `TokenRows` is one of lists."""

    @classmethod
    def joined(cls, parts: Sequence[TextRows]) -> TextRows:
        """The rows of one after those of another."""
        import pyarrow as pa

        return cls(pa.chunked_array([chunk for part in parts for chunk in part._column.chunks], pa.string()))

    def _read(self, scalar: pa.Scalar) -> str:
        return str(scalar.as_py())


class TextListRows(_ScalarRows[tuple[str, ...]]):
    """A column of lists of texts; each is read as a tuple."""

    def _read(self, scalar: pa.Scalar) -> tuple[str, ...]:
        return tuple(scalar.as_py())


def _slice(column: pa.ChunkedArray, rows: slice) -> pa.ChunkedArray:
    start, stop, step = rows.indices(len(column))
    if step != 1:
        return column.take(list(range(start, stop, step)))
    return column.slice(start, max(0, stop - start))
