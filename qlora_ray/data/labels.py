"""The labels of auxiliary heads: read beside the rows, and turned into the numbers of their classes."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qlora_ray.config.heads import Head
from qlora_ray.data.examples import Row, RowProblem
from qlora_ray.errors import DataError
from qlora_ray.formats import list_first, plural

# Stands for no label: the row takes no part in the head's loss, nor in its scores.
NO_LABEL = -1
# In a reader alone: a label that is none of the classes that the config names.
_UNKNOWN = -2
# Ours: a column with more different values is an answer or an id, and a head of it would not be a small one.
MAX_CLASSES = 1000
# Classes that a message names.
MAX_NAMED = 5


class LabelReader:
    """Reads the labels of one source's rows, a number for each row and head.

    Args:
        source_name: What messages call the source.
        heads: The config section `heads`.
    """

    def __init__(self, source_name: str, heads: Mapping[str, Head]) -> None:
        self.source_name = source_name
        self._heads = heads
        self._is_open = {name: head.classes == "auto" for name, head in heads.items()}
        self._places: dict[str, dict[str, int]] = {
            name: {} if self._is_open[name] else {text: at for at, text in enumerate(head.classes)}
            for name, head in heads.items()
        }
        self._codes = array("i")
        self._columns: dict[str, None] = {}

    def read(self, row: Row) -> tuple[int, ...]:
        """The codes of a row's labels, in the heads' order; `take` keeps them.

        Raises:
            RowProblem: If a label is neither a text nor a whole number.
            DataError: If there are too many different ones.
        """
        return tuple(self._code(row, name, head) for name, head in self._heads.items())

    def take(self, row: Row, codes: tuple[int, ...]) -> None:
        """Keeps what `read` returned of a row that is not left out."""
        self._codes.extend(codes)
        self._columns.update(dict.fromkeys(row.values))

    def __len__(self) -> int:
        return len(self._codes) // max(1, len(self._heads))

    @property
    def codes(self) -> NDArray[np.int32]:
        """One row for each row taken, one column for each head."""
        return np.frombuffer(self._codes, dtype=np.int32).reshape(-1, len(self._heads))

    @property
    def columns(self) -> list[str]:
        """The names of all columns that were seen."""
        return list(self._columns)

    @property
    def label_columns(self) -> list[str]:
        """The columns that labels are read from."""
        return [head.column for head in self._heads.values()]

    def texts(self, name: str) -> list[str]:
        """The labels behind a head's codes."""
        return list(self._places[name])

    def _code(self, row: Row, name: str, head: Head) -> int:
        text = _read_label(row.values.get(head.column), head.column)
        if text is None:
            return NO_LABEL
        places = self._places[name]
        if text in places:
            return places[text]
        if not self._is_open[name]:
            return _UNKNOWN
        if len(places) == MAX_CLASSES:
            raise DataError(
                f"heads.{name}.column: must have at most {MAX_CLASSES} different labels, got more in column "
                f"{head.column!r} of {self.source_name}. Name a column of labels, or list heads.{name}.classes."
            )
        places[text] = len(places)
        return places[text]


@dataclass(frozen=True)
class SplitLabels:
    """The labels of one split's rows.

    Attributes:
        classes: Of each row (first axis) and head: the number of its class, NO_LABEL where it has none, int32.
        num_unknown: By head, the labels that are none of its classes; their rows have no label.
    """

    classes: NDArray[np.int32]
    num_unknown: Mapping[str, int]

    def num_labelled(self, heads: Sequence[str]) -> dict[str, int]:
        """By head, the rows that have a label."""
        return {name: int((self.classes[:, at] != NO_LABEL).sum()) for at, name in enumerate(heads)}


def resolve_classes(
    heads: Mapping[str, Head], train: LabelReader, rows: NDArray[np.int64]
) -> dict[str, tuple[str, ...]]:
    """Each head's classes: as the config names them, else the different labels of the training rows, sorted.

    Args:
        heads: The config section `heads`.
        train: The labels of the source that the training rows are of.
        rows: Their places in it.

    Raises:
        DataError: If no training row has a label, or all have the same one.
    """
    found: dict[str, tuple[str, ...]] = {}
    for at, (name, head) in enumerate(heads.items()):
        codes = train.codes[rows, at]
        texts = train.texts(name)
        seen = sorted(texts[code] for code in np.unique(codes[codes >= 0]))
        if not seen:
            others = f" (labels: {list_first(head.classes, limit=MAX_NAMED)})" if head.classes != "auto" else ""
            raise DataError(
                f"heads.{name}.column: training rows must have a label in {head.column!r}, got none{others} in "
                f"{plural(len(rows), 'row')} of {train.source_name} with columns {', '.join(train.columns)}. "
                "Name the column that holds the labels."
            )
        if len(seen) < 2:
            raise DataError(
                f"heads.{name}.column: training rows must have at least 2 different labels in {head.column!r}, got "
                f"{seen[0]!r} alone. Leave the head out."
            )
        found[name] = tuple(seen) if head.classes == "auto" else tuple(head.classes)
    return found


def number_labels(classes: Mapping[str, Sequence[str]], source: LabelReader, rows: NDArray[np.int64]) -> SplitLabels:
    """The classes of some rows of a source, by number.

    Args:
        classes: Of each head, as `resolve_classes` returns them.
        source: The labels of the source that the rows are of.
        rows: Their places in it.
    """
    numbers = np.full((len(rows), len(classes)), NO_LABEL, dtype=np.int32)
    unknown: dict[str, int] = {}
    for at, (name, own) in enumerate(classes.items()):
        codes = source.codes[rows, at]
        places = {text: number for number, text in enumerate(own)}
        # The last one is for every code below 0.
        table = np.array([*(places.get(text, NO_LABEL) for text in source.texts(name)), NO_LABEL], dtype=np.int32)
        numbers[:, at] = table[np.maximum(codes, -1)]
        unknown[name] = int(((numbers[:, at] == NO_LABEL) & (codes != NO_LABEL)).sum())
    return SplitLabels(numbers, unknown)


def describe_labels(
    heads: Mapping[str, Head], classes: Mapping[str, Sequence[str]], splits: Mapping[str, SplitLabels]
) -> list[str]:
    """Warnings about labels that are none of a head's classes, classes without a row, and splits without a label."""
    warnings: list[str] = []
    for at, (name, own) in enumerate(classes.items()):
        column = heads[name].column
        for split, labels in splits.items():
            if labels.num_unknown[name]:
                warnings.append(
                    f"{split}: {plural(labels.num_unknown[name], 'row')} with a label in {column!r} that is no class "
                    f"of head {name}; they take no part in it"
                )
            if not labels.num_labelled(list(classes))[name]:
                warnings.append(f"{split}: no row has a label in {column!r}, so head {name} is not scored on it")
        seen = set(splits["train"].classes[:, at].tolist())
        missing = [text for number, text in enumerate(own) if number not in seen]
        if missing:
            warnings.append(
                f"train: no row has {list_first(map(repr, missing), limit=MAX_NAMED)}, which head {name} cannot learn"
            )
    return warnings


def _read_label(value: object, column: str) -> str | None:
    """A label as text, without the blanks around it; None where there is none."""
    if isinstance(value, str):
        return value.strip() or None
    if value is None or (isinstance(value, float) and value != value):  # NaN
        return None
    if isinstance(value, bool):
        return str(value).lower()
    # A column of whole numbers with holes in it comes as floats.
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    raise RowProblem(f"{column!r} must hold a label, a text or a whole number, got {value!r:.60}")
