"""Recognizes a dataset's format by its columns, and turns rows into Examples."""

from __future__ import annotations

import difflib
import functools
import pkgutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

from qlora_ray.config.choices import FORMATS
from qlora_ray.config.schema import Columns, Data
from qlora_ray.data.examples import Example, Row, RowProblem
from qlora_ray.data.labels import LabelReader
from qlora_ray.data.notes import Note, Notes
from qlora_ray.data.row_formats import TOOLS, RowFormat
from qlora_ray.data.tool_calls import read_tools, tells_tools
from qlora_ray.errors import DataError

# Where more rows are bad, it is the source that is not understood.
MAX_SKIPPED_SHARE = 0.1
TOLD = Note("row", "whose system text holds its tools already, so that the `tools` column is not shown beside it")
NUM_ROWS_LOOKED_AT = 20  # json rows may leave keys out, so more than the first one is looked at


@dataclass(frozen=True)
class Format:
    """A format that fits a source: its name, the columns it reads, and the words for the user."""

    name: str
    columns: tuple[str, ...]
    reason: str


@dataclass
class Conversion:
    """Turns the rows of one source into Examples, and keeps the counts that go into the report.

    Attributes:
        source_name: What messages call the source.
        data: The config section `data`: `format`, `columns` and `bad_rows` count.
        format: What was found to fit; known once the first rows have been converted.
        notes: Counts what was not taken as it was, and the rows that `data.bad_rows: skip` left out.
        labels: Reads the labels of auxiliary heads; None where there are none, or they are known.
    """

    source_name: str
    data: Data
    format: Format = field(init=False)
    notes: Notes = field(default_factory=Counter)
    labels: LabelReader | None = None

    def convert(self, rows: Iterable[Row]) -> Iterator[Example]:
        """Yields the Examples of the rows, which may be bad ones too.

        Raises:
            DataError: If the format cannot be told or a column is missing (columns and nearest name given), or, after
                the last row, if rows are bad: the first is named by file and line, and all are counted.
        """
        rows = iter(rows)
        first = _take_readable(rows, NUM_ROWS_LOOKED_AT)
        readable = [row for row in first if row.problem is None]
        labels = () if self.labels is None else self.labels.label_columns
        self.format = (
            choose_format(self.source_name, readable, self.data, read_beside=labels)
            if readable
            else Format(self.data.format, (), "")
        )
        num_rows = num_bad = 0
        first_bad = ("", "")
        for row in chain(first, rows):
            num_rows += 1
            try:
                if row.problem is not None:
                    raise RowProblem(row.problem)
                row_format = _find(self.format.name)
                tools = read_tools(row.values.get(TOOLS)) if TOOLS in row_format.optional_columns else ()
                turns = row_format.convert(row, self.format.columns, self.notes)
                if turns[0].role == "system" and tells_tools(turns[0].content, tools):
                    self.notes[TOLD] += 1
                    tools = ()
                example = Example(turns, row.where, tools, row_format.find_alternatives(row))
                codes = () if self.labels is None else self.labels.read(row)
            except RowProblem as error:
                first_bad = first_bad if num_bad else (row.where, str(error))
                num_bad += 1
            else:
                if self.labels is not None:
                    self.labels.take(row, codes)
                yield example
        if num_bad:
            self._judge_bad_rows(num_bad, num_rows, *first_bad)

    def _judge_bad_rows(self, num_bad: int, num_rows: int, where: str, problem: str) -> None:
        skips = self.data.bad_rows == "skip"
        if skips and num_bad <= MAX_SKIPPED_SHARE * num_rows:
            note = Note("bad row", f"left out, as data.bad_rows says (the first is {where}: {problem})")
            self.notes[note] += num_bad
            return
        count = "This is the only bad row" if num_bad == 1 else f"{num_bad} rows are bad"
        advice = f"Correct or remove {_them(num_bad)}"
        if skips:
            advice += f": data.bad_rows skips at most {MAX_SKIPPED_SHARE:.0%} of a source"
        raise DataError(f"{where}: {problem}. {count} of {num_rows}. {advice}.")


def _take_readable(rows: Iterator[Row], num_wanted: int) -> list[Row]:
    """The first rows, up to so many that could be read."""
    taken: list[Row] = []
    num_readable = 0
    for row in rows:
        taken.append(row)
        num_readable += row.problem is None
        if num_readable == num_wanted:
            break
    return taken


def choose_format(source_name: str, rows: Sequence[Row], data: Data, *, read_beside: Sequence[str] = ()) -> Format:
    """Returns the format that the config names, or the one that the columns of the first rows fit.

    Args:
        source_name: What messages call the source.
        rows: Its rows that could be read.
        data: The config section `data`: `format` and `columns` count.
        read_beside: Columns that are read whatever the format is.

    Raises:
        DataError: If a named column is missing, or if no format or more than one fits.
    """
    seen = list(dict.fromkeys(column for row in rows[:NUM_ROWS_LOOKED_AT] for column in row.values))
    if data.columns is not None:
        return _named_columns(source_name, seen, data.columns, read_beside)
    if data.format != "auto":
        required = _find(data.format).columns
        for column in required:
            if column not in seen:
                raise DataError(_missing_column(source_name, column, seen, f"data.format {data.format} needs"))
        return _format(data.format, required, seen, f"data.format is {data.format}", read_beside)
    candidates = _candidates(rows, seen)
    if len(candidates) == 1:
        name, columns = candidates[0]
        return _format(name, columns, seen, f"columns {' + '.join(columns)} are there", read_beside)
    if candidates:
        choices = "; ".join(f"{name} ({' + '.join(columns)})" for name, columns in candidates)
        raise DataError(
            f"{source_name}: columns must fit one format, got {', '.join(seen)}, which fit {choices}. "
            f"Set data.columns: {{prompt: {candidates[0][1][0]}, completion: {candidates[0][1][-1]}}}, or data.format."
        )
    first, second = (seen[0], seen[1]) if len(seen) > 1 else ("question", "answer")
    raise DataError(
        f"{source_name}: columns must fit a known format, got {', '.join(seen) or 'none'}. "
        f"Say which are meant, e.g. data.columns: {{prompt: {first}, completion: {second}}}."
    )


def _candidates(rows: Sequence[Row], seen: Sequence[str]) -> list[tuple[str, tuple[str, ...]]]:
    """Returns (format, columns) of all that the rows fit."""
    found: list[tuple[str, tuple[str, ...]]] = []
    fallbacks: list[tuple[str, tuple[str, ...]]] = []
    for name in FORMATS:
        row_format = _find(name)
        fitting = [(name, columns) for columns in row_format.recognize(row_format, rows[:NUM_ROWS_LOOKED_AT], seen)]
        (fallbacks if row_format.is_fallback else found).extend(fitting)
    return found or fallbacks


def _named_columns(source_name: str, seen: list[str], columns: Columns, read_beside: Sequence[str]) -> Format:
    for key, column in (("prompt", columns.prompt), ("completion", columns.completion)):
        if column not in seen:
            raise DataError(_missing_column(source_name, column, seen, f"data.columns.{key} names"))
    pair = (columns.prompt, columns.completion)
    return _format("columns", pair, seen, f"data.columns names {columns.prompt} -> {columns.completion}", read_beside)


def _format(name: str, columns: tuple[str, ...], seen: list[str], why: str, read_beside: Sequence[str]) -> Format:
    used = {*columns, *_find(name).optional_columns, *read_beside}
    unused = [column for column in seen if column not in used]
    suffix = f"; not used: {', '.join(unused)}" if unused else ""
    return Format(name, columns, f"{why}; columns seen: {', '.join(seen)}{suffix}")


def _missing_column(source_name: str, column: str, seen: list[str], rule: str) -> str:
    nearest = difflib.get_close_matches(column, seen, n=1, cutoff=0.5)
    advice = f"Did you mean {nearest[0]!r}?" if nearest else "Name one of these."
    return f"{source_name}: {rule} a column {column!r}, got columns {', '.join(seen) or 'none'}. {advice}"


def _find(name: str) -> RowFormat:
    return _load(FORMATS[name])


@functools.cache  # it is asked for each row
def _load(target: str) -> RowFormat:
    row_format: RowFormat = pkgutil.resolve_name(target)
    return row_format


def _them(count: int) -> str:
    return "it" if count == 1 else "them"
